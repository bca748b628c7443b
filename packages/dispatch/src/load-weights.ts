/** Brings the weights of one device into place, in file order: the addon reads, converts, quantizes and packs; no weight passes through JavaScript. */
import {
  DTYPES,
  type FileId,
  guardNative,
  LOAD_MODES,
  MEMORY_KINDS,
  native,
  opSignature,
  type ProgramTensor,
  packedInt8Bytes,
  rowMajorStrides,
  TENSOR_WORDS,
  type TensorId,
} from '@metashard/core';
import type { DeviceExecutor } from './device-executor.js';
import type { FileSource, LoadInstruction } from './executor-protocol.js';

export type ReportLoaded = (tensor: string, bytes: number) => void;

/** Runs the instructions; `cancelled` is asked between tensors. Throws CheckpointError-like backend errors naming file and offset. */
export function loadWeights(
  executor: DeviceExecutor,
  instructions: readonly LoadInstruction[],
  report: ReportLoaded,
  cancelled: () => boolean,
): void {
  const files = new Map<string, FileId>();
  const open = (path: string): FileId => {
    let file = files.get(path);
    if (file === undefined) {
      file = guardNative(executor.setup.device, 'open file', () => native().openFile(path));
      files.set(path, file);
    }
    return file;
  };
  try {
    for (const instruction of instructions) {
      if (cancelled()) return;
      const bytes = guardNative(executor.setup.device, 'load', () => runInstruction(executor, instruction, open));
      report(nameOf(executor, instruction), bytes);
    }
  } finally {
    for (const file of files.values()) native().closeFile(file);
  }
}

function nameOf(executor: DeviceExecutor, instruction: LoadInstruction): string {
  const id = 'tensor' in instruction ? instruction.tensor : instruction.CB;
  return executor.setup.program.tensors[id]?.name ?? '';
}

function runInstruction(
  executor: DeviceExecutor,
  instruction: LoadInstruction,
  open: (path: string) => FileId,
): number {
  switch (instruction.kind) {
    case 'convert':
      return fromFile(executor, open, instruction.source, LOAD_MODES.convert, words(executor, instruction.tensor));
    case 'quantize':
      return fromFile(
        executor,
        open,
        instruction.source,
        LOAD_MODES.quantize,
        words(executor, instruction.CB),
        words(executor, instruction.SCB),
      );
    case 'int8':
      return (
        fromFile(executor, open, instruction.source, LOAD_MODES.int8, words(executor, instruction.CB)) +
        fromFile(executor, open, instruction.scales, LOAD_MODES.convert, words(executor, instruction.SCB))
      );
    case 'dequantize':
      return dequantize(executor, open, instruction);
    case 'memory':
      return fromMemory(executor, instruction);
  }
}

/** Rows and columns of a tensor as the loader sees it: 1-D is one row. */
export function matrixShape(shape: readonly number[]): [number, number] {
  if (shape.length <= 1) return [1, shape[0] ?? 1];
  return [shape[0] as number, shape.slice(1).reduce((a, b) => a * b, 1)];
}

function words(executor: DeviceExecutor, id: TensorId): Float64Array {
  return tensorWords(executor.buffer(id), executor.setup.program.tensors[id] as ProgramTensor);
}

/** A whole buffer as a [rows, columns] tensor. */
export function tensorWords(
  buffer: number,
  { dims, dtype, layout }: Pick<ProgramTensor, 'dims' | 'dtype' | 'layout'>,
): Float64Array {
  const shape = matrixShape(dims as readonly number[]);
  const encoded = new Float64Array(TENSOR_WORDS);
  encoded.set([buffer, 0, DTYPES[dtype].code, layout === 'packed_int8' ? 1 : 0, 2, ...shape]);
  encoded.set(rowMajorStrides(shape), 9);
  return encoded;
}

function fromFile(
  executor: DeviceExecutor,
  open: (path: string) => FileId,
  source: FileSource,
  mode: number,
  destination: Float64Array,
  scales: Float64Array = new Float64Array(0),
): number {
  const [rows, columns] = matrixShape(source.shape);
  return native().loadWeight(
    executor.context.id,
    open(source.file),
    source.offset,
    DTYPES[source.dtype].code,
    rows,
    columns,
    mode,
    destination,
    scales,
    false,
  );
}

/** An 8-bit weight of a checkpoint whose module stays in float: read, then CB · SCB / 127 rounded to the weight's dtype. */
function dequantize(
  executor: DeviceExecutor,
  open: (path: string) => FileId,
  instruction: Extract<LoadInstruction, { kind: 'dequantize' }>,
): number {
  const { context } = executor;
  const addon = native();
  const [rows, columns] = matrixShape(instruction.source.shape);
  const scratch = MEMORY_KINDS.indexOf('scratch');
  const target = executor.setup.program.tensors[instruction.tensor] as ProgramTensor;
  const temporary = [rows * columns, rows * 4, rows * columns * 4].map((bytes) =>
    context.alloc(Math.max(bytes, 1), scratch),
  );
  const [CB, SCB, wide] = temporary as [number, number, number];
  try {
    const int8 = tensorWords(CB, { dims: [rows, columns], dtype: 'int8', layout: 'strided' });
    const scales = tensorWords(SCB, { dims: [rows], dtype: 'float32', layout: 'strided' });
    const floats = tensorWords(wide, { dims: [rows, columns], dtype: 'float32', layout: 'strided' });
    const read =
      fromFile(executor, open, instruction.source, LOAD_MODES.int8, int8) +
      fromFile(executor, open, instruction.scales, LOAD_MODES.convert, scales);
    const scaleVector = Float64Array.from(scales);
    scaleVector.set([1, rows, 0], 4); // rank 1, [rows]
    scaleVector.set([1, 0], 9);
    const none = new Float64Array(0);
    addon.callOp(
      context.id,
      opSignature('dequantize_weight').code,
      Float64Array.from([...int8, ...scaleVector]),
      floats,
      none,
      0,
    );
    addon.callOp(
      context.id,
      opSignature('cast').code,
      floats,
      tensorWords(executor.buffer(instruction.tensor), target),
      none,
      0,
    );
    addon.synchronize(context.id);
    return read;
  } finally {
    for (const buffer of temporary) addon.free(buffer);
  }
}

/** Copies a tensor that the main thread made; int8 weights are packed on the way. */
function fromMemory(executor: DeviceExecutor, instruction: Extract<LoadInstruction, { kind: 'memory' }>): number {
  const addon = native();
  const target = executor.setup.program.tensors[instruction.tensor] as ProgramTensor;
  const [rows, columns] = matrixShape(target.dims as readonly number[]);
  const bytes = rows * columns * DTYPES[target.dtype].bytes;
  if (target.layout !== 'packed_int8') {
    addon.copy(executor.buffer(instruction.tensor), 0, instruction.buffer, instruction.byteOffset, bytes);
    return bytes;
  }
  const strided = executor.context.alloc(Math.max(bytes, 1), MEMORY_KINDS.indexOf('scratch'));
  try {
    addon.copy(strided, 0, instruction.buffer, instruction.byteOffset, bytes);
    const source = tensorWords(strided, { dims: [rows, columns], dtype: 'int8', layout: 'strided' });
    addon.callOp(
      executor.context.id,
      opSignature('pack_int8').code,
      source,
      words(executor, instruction.tensor),
      new Float64Array(0),
      0,
    );
    addon.synchronize(executor.context.id);
    return packedInt8Bytes(rows, columns);
  } finally {
    addon.free(strided);
  }
}
