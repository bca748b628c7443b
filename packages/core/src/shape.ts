/**
 * Shapes: lists of dimensions. In a recorded Program a dimension may be one of three symbols; everywhere else it is a
 * number.
 */
import { ShapeError } from './errors.js';

/**
 * The only sizes a Program leaves open: rows of activations in a step (the ragged batch, flattened), sequences in a
 * step, and rows whose logits are wanted (the last token of each sequence while generating).
 */
export type DimSymbol = 'tokens' | 'sequences' | 'outputs';
export type Dim = number | DimSymbol;

export const DIM_SYMBOLS: readonly DimSymbol[] = ['tokens', 'sequences', 'outputs'];

/** What the symbols stand for in one step. */
export type DimValues = Readonly<Record<DimSymbol, number>>;

export function resolveDims(dims: readonly Dim[], values: DimValues): number[] {
  return dims.map((dim) => (typeof dim === 'number' ? dim : values[dim]));
}

/** Product of the dimensions; 1 for a scalar. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1);
}

/**
 * Strides in elements of a row-major tensor. The first dimension may be symbolic; a symbol further in has no fixed
 * stride.
 */
export function rowMajorStrides(dims: readonly Dim[]): number[] {
  const strides = new Array<number>(dims.length).fill(1);
  for (let i = dims.length - 2; i >= 0; i--) {
    const next = dims[i + 1] as Dim;
    if (typeof next !== 'number')
      throw new ShapeError(`shape [${dims.join(', ')}]: only the first dimension may be symbolic`);
    strides[i] = (strides[i + 1] as number) * next;
  }
  return strides;
}

export function sameDims(a: readonly Dim[], b: readonly Dim[]): boolean {
  return a.length === b.length && a.every((dim, i) => dim === b[i]);
}

export function formatDims(dims: readonly Dim[]): string {
  return `[${dims.join(', ')}]`;
}
