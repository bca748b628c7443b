/**
 * Tensors in host memory for testing ops: any dtype, strides and offset over one block of bytes, or the packed int8
 * layout, with their values as float64 in row-major order. Plain and slow on purpose; nothing here calls native code.
 */
import {
  bfloat16BitsToFloat32,
  DTYPES,
  type DType,
  float16BitsToFloat32,
  float32ToBfloat16Bits,
  float32ToFloat16Bits,
  type Layout,
  packedInt8Bytes,
} from '@metashard/core';

export interface HostTensor {
  readonly dims: readonly number[];
  readonly dtype: DType;
  readonly layout: Layout;
  /** In elements; empty where packed. */
  readonly strides: readonly number[];
  /** First element's place in `bytes`, in elements. */
  readonly offset: number;
  readonly bytes: Uint8Array;
}

export interface Placement {
  dtype?: DType;
  layout?: Layout;
  strides?: readonly number[];
  offset?: number;
}

/** What bytes that belong to no element hold, before and (if the op behaves) after it. */
export const FILL = 0xa5;

export function naturalStrides(dims: readonly number[]): number[] {
  const strides = dims.map(() => 1);
  for (let i = dims.length - 2; i >= 0; i--) strides[i] = (strides[i + 1] as number) * (dims[i + 1] as number);
  return strides;
}

export const elements = (dims: readonly number[]): number => dims.reduce((product, d) => product * d, 1);

function bytesNeeded(
  dims: readonly number[],
  dtype: DType,
  layout: Layout,
  strides: readonly number[],
  offset: number,
) {
  if (layout === 'packed_int8') return packedInt8Bytes(dims[0] as number, dims[1] as number);
  const last = dims.reduce((sum, d, i) => sum + Math.max(0, d - 1) * (strides[i] as number), 0);
  return (offset + (elements(dims) === 0 ? 0 : last + 1)) * DTYPES[dtype].bytes;
}

/** A tensor of undefined values (every byte is FILL). */
export function emptyHost(dims: readonly number[], placement: Placement = {}): HostTensor {
  const { dtype = 'float32', layout = 'strided', offset = 0 } = placement;
  const strides = layout === 'strided' ? (placement.strides ?? naturalStrides(dims)) : [];
  const bytes = new Uint8Array(bytesNeeded(dims, dtype, layout, strides, offset)).fill(FILL);
  return { dims, dtype, layout, strides, offset, bytes };
}

/** A tensor of these values, rounded to its dtype. */
export function hostTensor(dims: readonly number[], values: ArrayLike<number>, placement: Placement = {}): HostTensor {
  const made = emptyHost(dims, placement);
  if (made.layout === 'packed_int8') packInto(made, values);
  else forEachElement(made, (place, i) => writeElement(made, place, values[i] as number));
  return made;
}

/** Byte position of every element, in row-major order of indices. */
export function forEachElement(tensor: HostTensor, visit: (bytePosition: number, index: number) => void): void {
  const { dims, strides, offset } = tensor;
  const width = DTYPES[tensor.dtype].bytes;
  const count = elements(dims);
  const index = dims.map(() => 0);
  let place = offset;
  for (let i = 0; i < count; i++) {
    visit(place * width, i);
    for (let d = dims.length - 1; d >= 0; d--) {
      place += strides[d] as number;
      index[d] = (index[d] as number) + 1;
      if ((index[d] as number) < (dims[d] as number)) break;
      place -= (dims[d] as number) * (strides[d] as number);
      index[d] = 0;
    }
  }
}

const view = (tensor: HostTensor) =>
  new DataView(tensor.bytes.buffer, tensor.bytes.byteOffset, tensor.bytes.byteLength);

function writeElement(tensor: HostTensor, at: number, value: number): void {
  const to = view(tensor);
  const { dtype } = tensor;
  if (dtype === 'float32') to.setFloat32(at, value, true);
  else if (dtype === 'float16') to.setUint16(at, float32ToFloat16Bits(value), true);
  else if (dtype === 'bfloat16') to.setUint16(at, float32ToBfloat16Bits(value), true);
  else if (dtype === 'int32') to.setInt32(at, value, true);
  else if (dtype === 'int64') to.setBigInt64(at, BigInt(value), true);
  else to.setInt8(at, value);
}

function readElement(tensor: HostTensor, at: number): number {
  const from = view(tensor);
  switch (tensor.dtype) {
    case 'float32':
      return from.getFloat32(at, true);
    case 'float16':
      return float16BitsToFloat32(from.getUint16(at, true));
    case 'bfloat16':
      return bfloat16BitsToFloat32(from.getUint16(at, true));
    case 'int32':
      return from.getInt32(at, true);
    case 'int64':
      return Number(from.getBigInt64(at, true));
    case 'int8':
      return from.getInt8(at);
    default:
      return from.getUint8(at);
  }
}

/** Values in row-major order; of a packed matrix, its [rows, columns]. */
export function hostValues(tensor: HostTensor): Float64Array {
  const values = new Float64Array(elements(tensor.dims));
  if (tensor.layout === 'packed_int8') {
    const [rows, K] = tensor.dims as readonly [number, number];
    const from = view(tensor);
    for (let n = 0; n < rows; n++) {
      for (let k = 0; k < K; k++) values[n * K + k] = from.getInt8(packedPosition(K, n, k));
    }
  } else {
    forEachElement(tensor, (place, i) => {
      values[i] = readElement(tensor, place);
    });
  }
  return values;
}

/** Byte position of (n, k) in the packed layout of backend.h. */
function packedPosition(K: number, n: number, k: number): number {
  return Math.floor(n / 16) * packedInt8Bytes(16, K) + Math.floor(k / 4) * 64 + (n % 16) * 4 + (k % 4);
}

/** The whole block is written: zeros where rows and columns are absent, and the row sums. */
function packInto(tensor: HostTensor, values: ArrayLike<number>): void {
  const [rows, K] = tensor.dims as readonly [number, number];
  const to = view(tensor);
  tensor.bytes.fill(0);
  for (let n = 0; n < rows; n++) {
    let sum = 0;
    for (let k = 0; k < K; k++) {
      to.setInt8(packedPosition(K, n, k), values[n * K + k] as number);
      sum += values[n * K + k] as number;
    }
    to.setInt32((Math.floor(n / 16) + 1) * packedInt8Bytes(16, K) - 64 + (n % 16) * 4, sum, true);
  }
}
