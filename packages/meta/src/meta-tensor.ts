/** Tensors on meta, made without going through device names and storage: thousands of them are made for one model. */
import { type Dim, type DType, type Layout, parseDevice, rowMajorStrides, ShapeError, Tensor } from '@metashard/core';

const META = parseDevice('meta');

/** A tensor of these dimensions without storage. Throws ShapeError for a dimension that is no whole number. */
export function metaTensor(dims: readonly Dim[], dtype: DType = 'float32', layout: Layout = 'strided'): Tensor {
  for (const dim of dims) {
    if (typeof dim === 'number' && (!Number.isSafeInteger(dim) || dim < 0)) {
      throw new ShapeError(`meta: expected whole dimensions, got [${dims.join(', ')}]`);
    }
  }
  return new Tensor({ dims, dtype, device: META, layout, strides: rowMajorStrides(dims), offset: 0, storage: null });
}
