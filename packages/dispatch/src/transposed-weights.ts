/**
 * Weights that a checkpoint holds with their dimensions swapped (GPT-2's Conv1D): read whole into host memory, beside
 * every device's budget and freed at once, then turned round, converted or quantized panel by panel, and copied into
 * place.
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
const PANEL_BYTES = 4 * 2 ** 20;
/** Rows of a block of the packed layout: a panel starts at a multiple of it. */
const BLOCK_ROWS = 16;

/**
 * Places a float matrix [in, out] of a file as [out, in]: converted into one target, or quantized into two (CB and
 * SCB).
 * Returns the bytes read.
 */
export function loadTransposed(file: FileId, source: FileSource, targets: readonly WeightTarget[]): number {
  const host = new HostTensors();
  const { dtype } = source;
  const [inFeatures, outFeatures] = source.shape as [number, number];
  try {
    const stored = host.tensor({ dims: [inFeatures, outFeatures], dtype });
    const read = host.read(file, source, stored.words);
    const { bytes: elementBytes } = DTYPES[dtype];
    const rowsOfPanel = Math.floor(PANEL_BYTES / (inFeatures * elementBytes) / BLOCK_ROWS) * BLOCK_ROWS;
    const step = Math.max(BLOCK_ROWS, rowsOfPanel);
    for (let row = 0; row < outFeatures; row += step) {
      const rows = Math.min(step, outFeatures - row);
      const columns = stored.words.slice(); // rows … of the weight: columns of what is stored
      columns.set([row * elementBytes], 1);
      columns.set([rows, inFeatures], 5);
      columns.set([1, outFeatures], 9);
      placePanel(host, { row, rows, columns, spec: { dims: [rows, inFeatures], dtype } }, targets);
    }
    return read;
  } finally {
    host.close();
  }
}

interface Panel {
  /** Its first row in the weight. */
  row: number;
  rows: number;
  /** A view of its elements, in TENSOR_WORDS. */
  columns: Float64Array;
  /** [rows, in] in the source's dtype. */
  spec: TensorSpec;
}

function placePanel(host: HostTensors, panel: Panel, targets: readonly WeightTarget[]): void {
  const dense = host.tensor(panel.spec);
  host.call('copy', panel.columns, dense.words);
  const made = targets.map(({ spec }) => host.tensor(firstRows(spec, panel.rows)));
  const results = Float64Array.from(made.flatMap(({ words }) => [...words]));
  if (made.length === 1) host.call('cast', dense.words, results);
  else host.call('quantize_weight', dense.words, results, [0]);
  for (const [i, { buffer, byteOffset, spec }] of targets.entries()) {
    const { buffer: from, bytes } = made[i] as HostTensor;
    native().copy(buffer, byteOffset + specBytes(firstRows(spec, panel.row)), from, 0, bytes);
  }
  for (const { buffer } of [dense, ...made]) host.free(buffer);
}

const firstRows = (spec: ProgramTensor, rows: number): TensorSpec => ({ ...spec, dims: [rows, ...spec.dims.slice(1)] });

interface HostTensor {
  buffer: BufferId;
  bytes: number;
  words: Float64Array;
}

/** Tensors in host memory that live for one weight. */
class HostTensors {
  readonly #context = contextOf(parseDevice('cpu:0'));
  readonly #buffers = new Set<BufferId>();

  tensor(spec: TensorSpec): HostTensor {
    const bytes = specBytes(spec);
    const buffer = this.#context.alloc(Math.max(bytes, 1), MEMORY_KINDS.indexOf('other'));
    this.#buffers.add(buffer);
    const { dims, dtype, layout } = spec;
    const words = new Float64Array(TENSOR_WORDS);
    words.set([buffer, 0, DTYPES[dtype].code, layout === 'packed_int8' ? 1 : 0, dims.length, ...(dims as number[])]);
    words.set(rowMajorStrides(dims), 9);
    return { buffer, bytes, words };
  }

  /** Reads a matrix as it lies in the file. */
  read(file: FileId, { offset, dtype, shape }: FileSource, into: Float64Array): number {
    const [rows, columns] = shape as [number, number];
    const { code } = DTYPES[dtype];
    const { convert } = LOAD_MODES;
    return native().loadWeight(this.#context.id, file, offset, code, rows, columns, convert, into, NONE, false);
  }

  call(
    op: 'copy' | 'cast' | 'quantize_weight',
    input: Float64Array,
    outputs: Float64Array,
    attributes: readonly number[] = [],
  ): void {
    native().callOp(this.#context.id, opSignature(op).code, input, outputs, Float64Array.from(attributes), 0);
  }

  free(buffer: BufferId): void {
    this.#buffers.delete(buffer);
    native().free(buffer);
  }
  close(): void {
    for (const buffer of this.#buffers) native().free(buffer);
  }
}
