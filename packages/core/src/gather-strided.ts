/**
 * Elements of a strided tensor (a transposed or sliced view, as PyTorch files may hold) brought into row-major order.
 * Reads the file through one window, in its order as far as the strides allow; the result lies in memory whole.
 */
import { elementCount, rowMajorStrides } from './shape.js';

const WINDOW_BYTES = 16 * 2 ** 20;

export interface StridedView {
  readonly shape: readonly number[];
  /** In elements. */
  readonly strides: readonly number[];
  /** Bytes of an element: 1, 2, 4 or 8. */
  readonly elementBytes: number;
}

/** Fills `window` with the bytes that lie `position` bytes after the view's first element. */
export type ReadWindow = (window: Uint8Array, position: number) => Promise<void>;

/** The bytes of a view's elements, row by row. `read` is never asked for more than the view spans, or `windowBytes`. */
export async function gatherStrided(
  view: StridedView,
  read: ReadWindow,
  windowBytes = WINDOW_BYTES,
): Promise<Uint8Array> {
  const { shape, strides, elementBytes } = plainView(view);
  const result = new ArrayBuffer(elementCount(shape) * elementBytes);
  if (result.byteLength === 0) return new Uint8Array(result);
  const part = { dims: shape, from: 0, to: 0 };
  const spanBytes = elementBytes * (1 + lastElement(shape, strides));
  const window = new ArrayBuffer(
    Math.max(elementBytes, Math.min(spanBytes, windowBytes - (windowBytes % elementBytes))),
  );
  await gatherPart(part, { window, result, read, strides, steps: rowMajorStrides(shape), elementBytes });
  return new Uint8Array(result);
}

/** A scalar gets an axis; 8 bytes become two elements of 4, which are plain numbers. */
function plainView(view: StridedView): StridedView {
  const { shape, strides, elementBytes } = view.shape.length === 0 ? { ...view, shape: [1], strides: [1] } : view;
  if (elementBytes !== 8) return { shape, strides, elementBytes };
  return { shape: [...shape, 2], strides: [...strides.map((stride) => 2 * stride), 1], elementBytes: 4 };
}

/** A box of the view: its size, and the element it starts at in the file and in the result. */
interface Part {
  readonly dims: readonly number[];
  readonly from: number;
  readonly to: number;
}

interface Gathering {
  readonly window: ArrayBuffer;
  readonly result: ArrayBuffer;
  readonly read: ReadWindow;
  /** In the file. */
  readonly strides: readonly number[];
  /** In the result. */
  readonly steps: readonly number[];
  readonly elementBytes: number;
}

/** Halves the box across its longest stride until what it spans fits the window. */
async function gatherPart({ dims, from, to }: Part, gathering: Gathering): Promise<void> {
  const { window, read, strides, steps, elementBytes } = gathering;
  const spanBytes = elementBytes * (1 + lastElement(dims, strides));
  if (spanBytes <= window.byteLength) {
    await read(new Uint8Array(window, 0, spanBytes), from * elementBytes);
    scatter(dims, to, gathering);
    return;
  }
  const long = (axis: number): number => (dims[axis] === 1 ? -1 : (strides[axis] as number));
  const axis = dims.reduce((best, _, at) => (long(at) > long(best) ? at : best), 0);
  const dim = dims[axis] as number;
  const first = Math.ceil(dim / 2);
  await gatherPart({ dims: dims.with(axis, first), from, to }, gathering);
  const rest = {
    dims: dims.with(axis, dim - first),
    from: from + first * (strides[axis] as number),
    to: to + first * (steps[axis] as number),
  };
  await gatherPart(rest, gathering);
}

/** Copies a box from the window's start to its places in the result. */
function scatter(
  dims: readonly number[],
  to: number,
  { window, result, strides, steps, elementBytes }: Gathering,
): void {
  const Elements = elementBytes === 1 ? Uint8Array : elementBytes === 2 ? Uint16Array : Uint32Array;
  const source = new Elements(window);
  const target = new Elements(result);
  const copyAxis = (axis: number, read: number, write: number): void => {
    const [dim, stride, step] = [dims[axis] as number, strides[axis] as number, steps[axis] as number];
    if (axis === dims.length - 1) {
      for (let i = 0; i < dim; i++) target[write + i * step] = source[read + i * stride] as number;
      return;
    }
    for (let i = 0; i < dim; i++) copyAxis(axis + 1, read + i * stride, write + i * step);
  };
  copyAxis(0, 0, to);
}

/** Elements from the first to the last. */
function lastElement(dims: readonly number[], strides: readonly number[]): number {
  return dims.reduce((last, dim, axis) => last + (dim - 1) * (strides[axis] as number), 0);
}
