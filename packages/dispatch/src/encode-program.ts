/** A segment as the addon's `createProgram` wants it: see PROGRAM_TENSOR_WORDS in @metashard/core's native.ts. */
import {
  type BufferId,
  DIM_SYMBOLS,
  type Dim,
  DTYPES,
  opSignature,
  PROGRAM_TENSOR_WORDS,
  type Program,
  type ProgramTensor,
  rowMajorStrides,
  type TensorId,
} from '@metashard/core';
import { storageOf } from './program-facts.js';
import type { Segment } from './segments.js';

/** Where a storage tensor lies: in a buffer for good, or in one named at each run. */
export type TensorPlace = { buffer: BufferId; byteOffset: number } | { binding: number };

const SOURCE = { buffer: 0, binding: 1, absent: 2 } as const;
const ABSENT: TensorId = -1;
const LAYOUT_CODES = { strided: 0, packed_int8: 1 } as const;

export function encodeProgram(
  program: Program,
  segment: Segment,
  scratch: BufferId,
  placeOf: (storage: TensorId) => TensorPlace,
): Float64Array {
  const indices = new Map<TensorId, number>();
  const tensorWords: number[] = [];
  const indexOf = (id: TensorId): number => {
    const known = indices.get(id);
    if (known !== undefined) return known;
    indices.set(id, indices.size);
    tensorWords.push(...(id === ABSENT ? absentTensor() : encodeTensor(program, id, placeOf(storageOf(program, id)))));
    return indices.size - 1;
  };
  const opWords: number[] = [];
  for (const op of segment.ops) {
    opWords.push(opSignature(op.op).code, op.inputs.length, op.outputs.length, op.attributes.length);
    opWords.push(...op.inputs.map(indexOf), ...op.outputs.map(indexOf), ...op.attributes);
  }
  return Float64Array.from([indices.size, segment.ops.length, scratch, ...tensorWords, ...opWords]);
}

function absentTensor(): number[] {
  const words = new Array<number>(PROGRAM_TENSOR_WORDS).fill(0);
  words[0] = SOURCE.absent;
  return words;
}

function encodeTensor(program: Program, id: TensorId, place: TensorPlace): number[] {
  const tensor = program.tensors[id] as ProgramTensor;
  const strides = tensor.strides ?? rowMajorStrides(tensor.dims);
  const shift = (tensor.kind === 'view' ? (tensor.offset ?? 0) : 0) * DTYPES[tensor.dtype].bytes;
  const [source, index, offset] =
    'binding' in place
      ? [SOURCE.binding, place.binding, shift]
      : [SOURCE.buffer, place.buffer, place.byteOffset + shift];
  const words = new Array<number>(PROGRAM_TENSOR_WORDS).fill(0);
  words.splice(0, 6, source, index, offset, DTYPES[tensor.dtype].code, LAYOUT_CODES[tensor.layout], tensor.dims.length);
  for (const [i, dim] of tensor.dims.entries()) {
    words[6 + i] = encodeDim(dim);
    words[10 + i] = strides[i] as number;
  }
  return words;
}

function encodeDim(dim: Dim): number {
  return typeof dim === 'number' ? dim : -1 - DIM_SYMBOLS.indexOf(dim);
}
