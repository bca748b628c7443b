/**
 * Layers take tensors of any rank and work on rows, `[rows, features]`: the flattening and its undoing, in one place.
 */
import { elementCount, formatDims, ShapeError, type Tensor } from '@metashard/core';

/**
 * Runs `compute` on x as `[rows, features]` and gives its `[rows, out]` the leading dimensions of x back. Throws
 * ShapeError.
 */
export function onRows(layer: string, x: Tensor, features: number, compute: (rows: Tensor) => Tensor): Tensor {
  if (x.dims.length === 0 || x.dims.at(-1) !== features) {
    throw new ShapeError(`${layer}: expected x [..., ${features}], got ${formatDims(x.dims)}`);
  }
  if (x.dims.length === 2) return compute(x.strides[1] === 1 ? x : x.contiguous());
  const leading = x.shape.slice(0, -1);
  const out = compute(x.contiguous().reshape([elementCount(leading), features]));
  return out.reshape([...leading, out.dims[1] as number]);
}
