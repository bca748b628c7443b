/** Matrices with their dimensions swapped: the same elements, seen the other way round. Copying is the caller's. */
import { Tensor } from '@metashard/core';

/** [rows, columns] → [columns, rows]; a view that shares the elements. */
export function transposedView(matrix: Tensor): Tensor {
  const { dims, strides, parts, base } = matrix;
  return new Tensor({ ...parts, dims: dims.toReversed(), strides: strides.toReversed(), base });
}
