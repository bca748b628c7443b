/**
 * Elements of a strided tensor (a transposed or sliced view, as PyTorch files may hold) brought into row-major order.
 * Reads the file through one window, in its order as far as the strides allow; the result lies in memory whole.
 */
import { checkpointError } from './safetensors.js';
import { rowMajorStrides } from './shape.js';

export interface StridedSpan {
  readonly shape: readonly number[];
  /** In elements, of the bytes that `read` gives. */
  readonly strides: readonly number[];
  /** Bytes of an element: 1, 2, 4 or 8. */
  readonly elementBytes: number;
}

/** Fills `window` from its start with `length` bytes that lie `position` bytes after the tensor's first element. */
export type ReadWindow = (window: Uint8Array, position: number, length: number) => Promise<void>;
