/**
 * Tensors as PyTorch pickles them: a dtype, a shape and strides over a storage. What the rebuild functions of
 * `torch._utils` would make is only described here; every number is checked against the storage. No data.
 */
import { DTYPES, type DType } from '../dtype.js';
import { MAX_RANK } from '../safetensors.js';
import { formatDims, rowMajorStrides } from '../shape.js';
import { PickleDict, PickleTuple, type PickleValue } from './pickle-values.js';
import { TorchGlobal } from './torch-globals.js';
import { TorchStorage } from './torch-storages.js';

/** Makes the error of `expected …, got …` at the current place of the pickle. */
export type Fail = (what: string, hint?: string) => Error;

/** A dtype of PyTorch. */
export interface TorchDtype {
  /** float32, float64, float8_e4m3fn, … */
  readonly name: string;
  /** Bytes of an element. */
  readonly bytes: number;
  /** null: metashard does not compute with it. */
  readonly dtype: DType | null;
}

const OTHER_DTYPES: Readonly<Record<string, number>> = {
  float64: 8,
  complex32: 4,
  complex64: 8,
  complex128: 16,
  int16: 2,
  uint16: 2,
  uint32: 4,
  uint64: 8,
  float8_e4m3fn: 1,
  float8_e4m3fnuz: 1,
  float8_e5m2: 1,
  float8_e5m2fnuz: 1,
  float8_e8m0fnu: 1,
};

/** By name. */
export const TORCH_DTYPES: ReadonlyMap<string, TorchDtype> = new Map([
  ...Object.entries(DTYPES).map(([name, { bytes }]) => [name, { name, bytes, dtype: name as DType }] as const),
  ...Object.entries(OTHER_DTYPES).map(([name, bytes]) => [name, { name, bytes, dtype: null }] as const),
]);

/** A tensor that repeats elements (stride 0) may be larger than its storage, but not larger than this. */
const MAX_EXPANDED_BYTES = 256 * 2 ** 20;

export class TorchTensor {
  constructor(
    readonly storage: TorchStorage,
    readonly dtype: TorchDtype,
    /** First element, in bytes from the storage's start. */
    readonly byteOffset: number,
    readonly nbytes: number,
    readonly shape: readonly number[],
    /** In elements; undefined where the elements lie densely, row by row. */
    readonly strides: readonly number[] | undefined,
  ) {}
}

/** `_rebuild_tensor(storage, storage_offset, size, stride)`, before PyTorch 0.4. */
export function rebuildTensor(args: readonly PickleValue[], fail: Fail): TorchTensor {
  if (args.length !== 4) throw fail(`expected 4 arguments of _rebuild_tensor, got ${args.length}`);
  const [storage, offset, size, stride] = args;
  return describeTensor(storage, undefined, offset, size, stride, fail);
}

/** `_rebuild_tensor_v2(storage, storage_offset, size, stride, requires_grad, backward_hooks, metadata=None)`. */
export function rebuildTensorV2(args: readonly PickleValue[], fail: Fail): TorchTensor {
  if (args.length !== 6 && args.length !== 7) {
    throw fail(`expected 6 or 7 arguments of _rebuild_tensor_v2, got ${args.length}`);
  }
  const [storage, offset, size, stride, , hooks, metadata] = args;
  checkExtras(hooks, metadata, fail);
  return describeTensor(storage, undefined, offset, size, stride, fail);
}

/** `_rebuild_tensor_v3(storage, storage_offset, size, stride, requires_grad, backward_hooks, dtype, metadata=None)`. */
export function rebuildTensorV3(args: readonly PickleValue[], fail: Fail): TorchTensor {
  if (args.length !== 7 && args.length !== 8) {
    throw fail(`expected 7 or 8 arguments of _rebuild_tensor_v3, got ${args.length}`);
  }
  const [storage, offset, size, stride, , hooks, dtype, metadata] = args;
  if (!(dtype instanceof TorchGlobal) || dtype.role !== 'dtype') throw fail('expected a torch dtype, got something else');
  checkExtras(hooks, metadata, fail);
  return describeTensor(storage, dtype.dtype, offset, size, stride, fail);
}

/** Hooks are never saved; the bits `conj` and `neg` mean that the stored numbers are not the tensor's. */
function checkExtras(hooks: PickleValue | undefined, metadata: PickleValue | undefined, fail: Fail): void {
  if (hooks !== null && !(hooks instanceof PickleDict && hooks.size === 0)) {
    throw fail('expected a tensor without hooks, got some');
  }
  if (metadata === undefined || metadata === null || (metadata instanceof PickleDict && metadata.size === 0)) return;
  throw fail('expected a plain tensor, got one with a conj or neg bit', 'save resolve_conj() and resolve_neg() of it');
}

function describeTensor(
  storage: PickleValue | undefined,
  as: TorchDtype | undefined,
  storageOffset: PickleValue | undefined,
  size: PickleValue | undefined,
  stride: PickleValue | undefined,
  fail: Fail,
): TorchTensor {
  if (!(storage instanceof TorchStorage)) throw fail('expected a storage, got something else');
  const dtype = as ?? storage.dtype;
  const offset = wholeNumber(storageOffset, 'a storage offset', fail);
  const shape = wholeNumbers(size, 'dimensions', fail);
  const strides = wholeNumbers(stride, 'strides', fail);
  if (strides.length !== shape.length) {
    throw fail(`expected ${shape.length} strides for ${formatDims(shape)}, got ${formatDims(strides)}`);
  }
  const elements = shape.reduce((product, dim) => product * dim, 1);
  const end = elements === 0 ? 0 : shape.reduce((last, dim, axis) => last + (dim - 1) * (strides[axis] as number), offset + 1);
  const [nbytes, endBytes] = [elements * dtype.bytes, end * dtype.bytes];
  if (!Number.isSafeInteger(nbytes) || !(endBytes <= storage.nbytes)) {
    const got = `shape ${formatDims(shape)}, strides ${formatDims(strides)} from ${offset} on`;
    throw fail(`expected a tensor within ${storage.nbytes} bytes of ${dtype.name}, got ${got}`);
  }
  if (nbytes > storage.nbytes && nbytes > MAX_EXPANDED_BYTES) {
    throw fail(`expected at most ${MAX_EXPANDED_BYTES} bytes of repeated elements, got ${nbytes}`);
  }
  const dense = elements === 0 || liesDensely(shape, strides);
  const byteOffset = elements === 0 ? 0 : offset * dtype.bytes;
  return new TorchTensor(storage, dtype, byteOffset, nbytes, shape, dense ? undefined : strides);
}

function liesDensely(shape: readonly number[], strides: readonly number[]): boolean {
  const dense = rowMajorStrides(shape);
  return shape.every((dim, axis) => dim === 1 || strides[axis] === dense[axis]);
}

function wholeNumbers(value: PickleValue | undefined, what: string, fail: Fail): number[] {
  if (!(value instanceof PickleTuple)) throw fail(`expected a tuple of ${what}, got something else`);
  if (value.items.length > MAX_RANK) throw fail(`expected at most ${MAX_RANK} ${what}, got ${value.items.length}`);
  return value.items.map((item) => wholeNumber(item, what, fail));
}

/** An int from 0 to 2^53 - 1. */
export function wholeNumber(value: PickleValue | undefined, what: string, fail: Fail): number {
  if (typeof value !== 'bigint') throw fail(`expected ${what} as int, got something else`);
  if (value < 0n || value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw fail(`expected ${what} from 0 to 2^53 - 1, got one outside`);
  }
  return Number(value);
}
