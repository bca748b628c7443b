/**
 * Weights that a checkpoint holds with their dimensions swapped (GPT-2's Conv1D): turned round in host memory, beside every
 * device's budget and freed at once, then converted or quantized as any other and copied into place.
 */
import {
  type BufferId,
  contextOf,
  DTYPES,
  type FileId,
  LOAD_MODES,
  MEMORY_KINDS,
  native,
  opSignature,
  type ProgramTensor,
  parseDevice,
  rowMajorStrides,
  specBytes,
  TENSOR_WORDS,
  type TensorSpec,
} from '@metashard/core';
import type { FileSource } from './executor-protocol.js';
import type { WeightPlace } from './load-weights.js';

/** A weight, and where it goes. */
export interface WeightTarget extends WeightPlace {
  spec: ProgramTensor;
}

const NONE = new Float64Array(0);

/**
 * Places a float matrix [in, out] of a file as [out, in]: converted into one target, or quantized into two (CB and SCB).
 * Holds two copies of it at most. Returns the bytes read.
 */
export function loadTransposed(file: FileId, source: FileSource, targets: readonly WeightTarget[]): number {
  const host = new HostTensors();
  const [rows, columns] = source.shape as [number, number];
  const { dtype } = source;
  try {
    const stored = host.tensor({ dims: [rows, columns], dtype });
    const code = DTYPES[dtype].code;
    const { convert } = LOAD_MODES;
    const read = native().loadWeight(
      host.context.id,
      file,
      source.offset,
      code,
      rows,
      columns,
      convert,
      stored.words,
      NONE,
      false,
    );
    const weight = host.tensor({ dims: [columns, rows], dtype }); // [out, in]
    host.call('copy', swapped(stored.words), weight.words);
    host.free(stored.buffer);
    const made = targets.map(({ spec }) => ({ ...host.tensor(spec), bytes: specBytes(spec) }));
    const results = Float64Array.from(made.flatMap(({ words }) => [...words]));
    if (made.length === 1) host.call('cast', weight.words, results);
    else host.call('quantize_weight', weight.words, results, [0]);
    for (const [i, { buffer, bytes }] of made.entries()) {
      const target = targets[i] as WeightTarget;
      native().copy(target.buffer, target.byteOffset, buffer, 0, bytes);
    }
    return read;
  } finally {
    host.close();
  }
}

/** The same matrix with its dimensions swapped, in TENSOR_WORDS. */
function swapped(words: Float64Array): Float64Array {
  const [rows, columns] = [words[5] as number, words[6] as number];
  const turned = words.slice();
  turned.set([columns, rows], 5);
  turned.set([1, columns], 9);
  return turned;
}

/** Tensors in host memory that live for one weight. */
class HostTensors {
  readonly context = contextOf(parseDevice('cpu:0'));
  readonly #buffers = new Set<BufferId>();

  tensor(spec: TensorSpec): { buffer: BufferId; words: Float64Array } {
    const buffer = this.context.alloc(Math.max(specBytes(spec), 1), MEMORY_KINDS.indexOf('other'));
    this.#buffers.add(buffer);
    const words = new Float64Array(TENSOR_WORDS);
    const { dims, dtype, layout } = spec;
    words.set([buffer, 0, DTYPES[dtype].code, layout === 'packed_int8' ? 1 : 0, dims.length, ...(dims as number[])]);
    words.set(rowMajorStrides(dims), 9);
    return { buffer, words };
  }

  call(
    op: 'copy' | 'cast' | 'quantize_weight',
    input: Float64Array,
    outputs: Float64Array,
    attributes: readonly number[] = [],
  ): void {
    native().callOp(this.context.id, opSignature(op).code, input, outputs, Float64Array.from(attributes), 0);
  }

  free(buffer: BufferId): void {
    this.#buffers.delete(buffer);
    native().free(buffer);
  }
  close(): void {
    for (const buffer of this.#buffers) native().free(buffer);
  }
}
