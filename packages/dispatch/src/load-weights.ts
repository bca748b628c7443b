/** Brings weights into place: the addon reads, converts, quantizes and packs; no weight passes through JavaScript. Which weights, and where, others decide. */
import {
  type BufferId,
  type DeviceContext,
  DTYPES,
  type FileId,
  guardNative,
  LOAD_MODES,
  MEMORY_KINDS,
  native,
  opSignature,
  type Program,
  type ProgramTensor,
  packedInt8Bytes,
  rowMajorStrides,
  specBytes,
  TENSOR_WORDS,
  type TensorId,
} from '@metashard/core';
import type { FileSource, LoadInstruction } from './executor-protocol.js';
import { loadTransposed } from './transposed-weights.js';

export interface WeightPlace {
  buffer: BufferId;
  byteOffset: number;
}

const NONE = new Float64Array(0);

/** Runs load instructions on one device; every file is opened once. */
export class WeightLoader {
  readonly #files = new Map<string, FileId>();

  constructor(
    readonly context: DeviceContext,
    readonly program: Program,
    readonly placeOf: (weight: TensorId) => WeightPlace,
  ) {}

  /** Returns the bytes read. Throws CheckpointError for files that cannot be read, and what the device throws. */
  run(instruction: LoadInstruction): number {
    return guardNative(this.context.device.name, `load ${this.nameOf(instruction)}`, () => this.#run(instruction));
  }

  nameOf(instruction: LoadInstruction): string {
    const id = 'tensor' in instruction ? instruction.tensor : instruction.CB;
    return this.program.tensors[id]?.name ?? '';
  }

  close(): void {
    for (const file of this.#files.values()) native().closeFile(file);
    this.#files.clear();
    native().releaseLoading(this.context.id);
  }

  #run(instruction: LoadInstruction): number {
    switch (instruction.kind) {
      case 'convert':
        if (instruction.source.transposed) return this.#fromTransposed(instruction.source, [instruction.tensor]);
        return this.#fromFile(instruction.source, LOAD_MODES.convert, this.#words(instruction.tensor));
      case 'quantize':
        if (instruction.source.transposed) {
          return this.#fromTransposed(instruction.source, [instruction.CB, instruction.SCB]);
        }
        return this.#fromFile(
          instruction.source,
          LOAD_MODES.quantize,
          this.#words(instruction.CB),
          this.#words(instruction.SCB),
        );
      case 'int8':
        return (
          this.#fromFile(instruction.source, LOAD_MODES.int8, this.#words(instruction.CB)) +
          this.#fromFile(instruction.scales, LOAD_MODES.convert, this.#words(instruction.SCB))
        );
      case 'dequantize':
        return this.#dequantize(instruction);
      case 'stored':
        return this.#fromStore(instruction);
      case 'memory':
        return this.#fromMemory(instruction);
      case 'zero':
        return this.#zero([instruction.tensor, ...(instruction.SCB === undefined ? [] : [instruction.SCB])]);
    }
  }

  #open(path: string): FileId {
    let file = this.#files.get(path);
    if (file === undefined) {
      file = native().openFile(path);
      this.#files.set(path, file);
    }
    return file;
  }

  #tensor(id: TensorId): ProgramTensor {
    return this.program.tensors[id] as ProgramTensor;
  }

  #words(id: TensorId): Float64Array {
    return tensorWords(this.placeOf(id), this.#tensor(id));
  }

  #fromFile(source: FileSource, mode: number, destination: Float64Array, scales: Float64Array = NONE): number {
    const [rows, columns] = matrixShape(source.shape);
    const dtype = DTYPES[source.dtype].code;
    return native().loadWeight(
      this.context.id,
      this.#open(source.file),
      source.offset,
      dtype,
      rows,
      columns,
      mode,
      destination,
      scales,
      false,
    );
  }

  #fromTransposed(source: FileSource, tensors: readonly TensorId[]): number {
    const targets = tensors.map((id) => ({ ...this.placeOf(id), spec: this.#tensor(id) }));
    return loadTransposed(this.#open(source.file), source, targets);
  }

  /** Bytes as they are. */
  #fromStore({ tensor, file, offset, nbytes }: Extract<LoadInstruction, { kind: 'stored' }>): number {
    const bytes = { dims: [nbytes], dtype: 'int8', layout: 'strided' } as const;
    return native().loadWeight(
      this.context.id,
      this.#open(file),
      offset,
      DTYPES.int8.code,
      1,
      nbytes,
      LOAD_MODES.convert,
      tensorWords(this.placeOf(tensor), bytes),
      NONE,
      false,
    );
  }

  /** An 8-bit weight of a checkpoint whose module stays in float: read, then CB · SCB / 127 rounded to the weight's dtype. */
  #dequantize({ tensor, source, scales }: Extract<LoadInstruction, { kind: 'dequantize' }>): number {
    const [rows, columns] = matrixShape(source.shape);
    return this.#withMemory([rows * columns, rows * 4, rows * columns * 4], ([CB, SCB, wide]) => {
      const int8 = tensorWords(CB as WeightPlace, { dims: [rows, columns], dtype: 'int8', layout: 'strided' });
      const vector = tensorWords(SCB as WeightPlace, { dims: [rows], dtype: 'float32', layout: 'strided' });
      const floats = tensorWords(wide as WeightPlace, { dims: [rows, columns], dtype: 'float32', layout: 'strided' });
      const read = this.#fromFile(source, LOAD_MODES.int8, int8) + this.#fromFile(scales, LOAD_MODES.convert, vector);
      vector.set([1, rows, 0], 4); // rank 1, [rows]
      vector.set([1, 0], 9);
      this.#call('dequantize_weight', Float64Array.from([...int8, ...vector]), floats);
      this.#call('cast', floats, this.#words(tensor));
      return read;
    });
  }

  /** Copies a tensor that the main thread made; int8 weights are packed on the way. */
  #fromMemory({ tensor, buffer, byteOffset }: Extract<LoadInstruction, { kind: 'memory' }>): number {
    const target = this.#tensor(tensor);
    const [rows, columns] = matrixShape(target.dims as readonly number[]);
    const bytes = rows * columns * DTYPES[target.dtype].bytes;
    const place = this.placeOf(tensor);
    if (target.layout !== 'packed_int8') {
      native().copy(place.buffer, place.byteOffset, buffer, byteOffset, bytes);
      return bytes;
    }
    return this.#withMemory([bytes], ([strided]) => {
      native().copy((strided as WeightPlace).buffer, 0, buffer, byteOffset, bytes);
      const source = tensorWords(strided as WeightPlace, { dims: [rows, columns], dtype: 'int8', layout: 'strided' });
      this.#call('pack_int8', source, this.#words(tensor));
      return packedInt8Bytes(rows, columns);
    });
  }

  #zero(ids: readonly TensorId[]): number {
    for (const id of ids) {
      const { dims, dtype, layout } = this.#tensor(id);
      const { buffer, byteOffset } = this.placeOf(id);
      native().zero(buffer, byteOffset, specBytes({ dims: dims as readonly number[], dtype, layout }));
    }
    return 0;
  }

  #call(op: 'cast' | 'dequantize_weight' | 'pack_int8', inputs: Float64Array, outputs: Float64Array): void {
    native().callOp(this.context.id, opSignature(op).code, inputs, outputs, NONE, 0);
  }

  /** Memory of the device for the time of `use`. */
  #withMemory(sizes: readonly number[], use: (places: WeightPlace[]) => number): number {
    const buffers = sizes.map((bytes) => this.context.alloc(Math.max(bytes, 1), MEMORY_KINDS.indexOf('scratch')));
    try {
      const result = use(buffers.map((buffer) => ({ buffer, byteOffset: 0 })));
      native().synchronize(this.context.id);
      return result;
    } finally {
      for (const buffer of buffers) native().free(buffer);
    }
  }
}

/** Rows and columns of a tensor as the loader sees it: 1-D is one row. */
export function matrixShape(shape: readonly number[]): [number, number] {
  if (shape.length <= 1) return [1, shape[0] ?? 1];
  return [shape[0] as number, shape.slice(1).reduce((a, b) => a * b, 1)];
}

/** A dense [rows, columns] tensor at a place, in TENSOR_WORDS. */
export function tensorWords(
  { buffer, byteOffset }: WeightPlace,
  { dims, dtype, layout }: Pick<ProgramTensor, 'dims' | 'dtype' | 'layout'>,
): Float64Array {
  const shape = matrixShape(dims as readonly number[]);
  const encoded = new Float64Array(TENSOR_WORDS);
  encoded.set([buffer, byteOffset, DTYPES[dtype].code, layout === 'packed_int8' ? 1 : 0, 2, ...shape]);
  encoded.set(rowMajorStrides(shape), 9);
  return encoded;
}
