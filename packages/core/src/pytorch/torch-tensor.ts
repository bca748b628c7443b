/**
 * The rebuild functions of `torch._utils`: what they would make of a storage, an offset, a shape and strides is only
 * described here, and every number is checked against the storage. No data.
 */
import { MAX_RANK } from '../safetensors.js';
import { formatDims, rowMajorStrides } from '../shape.js';
import {
  type Fail,
  PickleDict,
  PickleTuple,
  type PickleValue,
  TorchGlobal,
  TorchStorage,
  TorchTensor,
  typeName,
  wholeNumber,
} from './pickle-values.js';
import type { TorchDtype } from './torch-dtypes.js';

/** A tensor that repeats elements (stride 0) may be larger than its storage, but not larger than this. */
const MAX_EXPANDED_BYTES = 16 * 2 ** 20;

/** `_rebuild_tensor(storage, storage_offset, size, stride)`, before PyTorch 0.4. */
export function rebuildTensor(args: readonly PickleValue[], fail: Fail): TorchTensor {
  checkCount(args, 4, 4, '_rebuild_tensor', fail);
  return describeTensor(args, undefined, fail);
}

/** `_rebuild_tensor_v2(storage, storage_offset, size, stride, requires_grad, backward_hooks, metadata=None)`. */
export function rebuildTensorV2(args: readonly PickleValue[], fail: Fail): TorchTensor {
  checkCount(args, 6, 7, '_rebuild_tensor_v2', fail);
  checkExtras(args[5], args[6], fail);
  return describeTensor(args, undefined, fail);
}

/** `_rebuild_tensor_v3(storage, storage_offset, size, stride, requires_grad, backward_hooks, dtype, metadata=None)`. */
export function rebuildTensorV3(args: readonly PickleValue[], fail: Fail): TorchTensor {
  checkCount(args, 7, 8, '_rebuild_tensor_v3', fail);
  checkExtras(args[5], args[7], fail);
  const dtype = args[6];
  if (dtype instanceof TorchGlobal && dtype.role === 'dtype') return describeTensor(args, dtype.dtype, fail);
  throw fail(`expected a torch dtype, got ${typeName(dtype)}`);
}

/** `_rebuild_parameter(data, requires_grad, backward_hooks)`: the tensor in it. */
export function rebuildParameter(args: readonly PickleValue[], fail: Fail): TorchTensor {
  checkCount(args, 3, 3, '_rebuild_parameter', fail);
  if (args[0] instanceof TorchTensor) return args[0];
  throw fail(`expected the tensor of a parameter, got ${typeName(args[0])}`);
}

/** `_rebuild_parameter_with_state(data, requires_grad, backward_hooks, state)`: the tensor, without its attributes. */
export function rebuildParameterWithState(args: readonly PickleValue[], fail: Fail): TorchTensor {
  checkCount(args, 4, 4, '_rebuild_parameter_with_state', fail);
  return rebuildParameter(args.slice(0, 3), fail);
}

function checkCount(args: readonly PickleValue[], least: number, most: number, name: string, fail: Fail): void {
  if (args.length >= least && args.length <= most) return;
  throw fail(`expected ${least === most ? least : `${least} or ${most}`} arguments of ${name}, got ${args.length}`);
}

/** Hooks are never saved; the bits `conj` and `neg` mean that the stored numbers are not the tensor's. */
function checkExtras(hooks: PickleValue | undefined, metadata: PickleValue | undefined, fail: Fail): void {
  if (hooks !== null && !(hooks instanceof PickleDict && hooks.size === 0)) {
    throw fail('expected a tensor without hooks, got some');
  }
  if (metadata === undefined || metadata === null || (metadata instanceof PickleDict && metadata.size === 0)) return;
  throw fail('expected a plain tensor, got one with a conj or neg bit', 'save resolve_conj() or resolve_neg() of it');
}

/** The tensor of (storage, storage offset, size, stride, …); `as` where the storage has no dtype of its own. */
function describeTensor(args: readonly PickleValue[], as: TorchDtype | undefined, fail: Fail): TorchTensor {
  const [storage, storageOffset, size, stride] = args;
  if (!(storage instanceof TorchStorage)) throw fail(`expected a storage, got ${typeName(storage)}`);
  const dtype = as ?? storage.dtype;
  const offset = wholeNumber(storageOffset, 'a storage offset', fail);
  const shape = wholeNumbers(size, 'dimensions', fail);
  const strides = wholeNumbers(stride, 'strides', fail);
  if (strides.length !== shape.length) {
    throw fail(`expected a stride for each of ${formatDims(shape)}, got ${formatDims(strides)}`);
  }
  const nbytes = shape.reduce((product, dim) => product * dim, dtype.bytes);
  const endBytes = nbytes === 0 ? 0 : (offset + lastElement(shape, strides) + 1) * dtype.bytes;
  if (!Number.isSafeInteger(nbytes) || !(endBytes <= storage.nbytes)) {
    const got = `shape ${formatDims(shape)} with strides ${formatDims(strides)} from ${offset} on`;
    throw fail(`expected a ${dtype.name} tensor within a storage of ${storage.nbytes} bytes, got ${got}`);
  }
  if (nbytes > Math.max(storage.nbytes, MAX_EXPANDED_BYTES)) {
    throw fail(`expected at most ${MAX_EXPANDED_BYTES} bytes of repeated elements, got ${nbytes}`);
  }
  const dense = nbytes === 0 || liesDensely(shape, strides);
  const byteOffset = nbytes === 0 ? 0 : offset * dtype.bytes;
  return new TorchTensor(storage, dtype, byteOffset, nbytes, shape, dense ? undefined : strides);
}

/** Elements from the first to the last one of a tensor that has any. */
function lastElement(shape: readonly number[], strides: readonly number[]): number {
  return shape.reduce((last, dim, axis) => last + (dim - 1) * (strides[axis] as number), 0);
}

function liesDensely(shape: readonly number[], strides: readonly number[]): boolean {
  const dense = rowMajorStrides(shape);
  return shape.every((dim, axis) => dim === 1 || strides[axis] === dense[axis]);
}

function wholeNumbers(value: PickleValue | undefined, what: string, fail: Fail): number[] {
  if (!(value instanceof PickleTuple)) throw fail(`expected a tuple of ${what}, got ${typeName(value)}`);
  if (value.items.length > MAX_RANK) throw fail(`expected at most ${MAX_RANK} ${what}, got ${value.items.length}`);
  return value.items.map((item) => wholeNumber(item, what, fail));
}
