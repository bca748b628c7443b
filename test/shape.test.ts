/**
 * Strides and views against a naive model that lists every element's position in the storage. On meta: no memory, no
 * native code.
 */
import {
  elementCount,
  empty,
  formatDims,
  resolveDims,
  rowMajorStrides,
  ShapeError,
  sameDims,
  type Tensor,
} from '@metashard/core';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';

/** Positions of a view's elements in row-major order, by walking its strides. */
function positions({ shape, strides, offset }: Tensor): number[] {
  let found = [offset];
  for (const [axis, dim] of shape.entries()) {
    found = found.flatMap((at) => Array.from({ length: dim }, (_, i) => at + i * (strides[axis] as number)));
  }
  return found;
}

/** The naive model: elements as a row-major list of positions. */
interface Model {
  shape: number[];
  list: number[];
}

/** Elements whose index along `axis` is kept, by counting through the list. */
function keep({ shape, list }: Model, axis: number, wanted: (index: number) => boolean): number[] {
  const inner = elementCount(shape.slice(axis + 1));
  return list.filter((_, i) => wanted(Math.floor(i / inner) % (shape[axis] as number)));
}

const shapes = fc.array(fc.integer({ min: 0, max: 5 }), { minLength: 1, maxLength: 5 });

describe('shapes', () => {
  it('gives row-major strides: consecutive elements lie one apart', () => {
    fc.assert(
      fc.property(shapes, (shape) => {
        const view = empty(shape, { device: 'meta' });
        expect(view.strides).toEqual(rowMajorStrides(shape));
        expect(positions(view)).toEqual(Array.from({ length: elementCount(shape) }, (_, i) => i));
        expect(view.isContiguous).toBe(true);
      }),
    );
  });

  it('keeps a symbol in front and refuses one further in', () => {
    expect(rowMajorStrides(['tokens', 3, 4])).toEqual([12, 4, 1]);
    expect(() => rowMajorStrides([3, 'tokens'])).toThrow(ShapeError);
    expect(resolveDims(['tokens', 4, 'outputs'], { tokens: 7, sequences: 2, outputs: 1 })).toEqual([7, 4, 1]);
    expect(sameDims(['tokens', 2], ['tokens', 2])).toBe(true);
    expect(sameDims([2], [2, 1])).toBe(false);
    expect(formatDims(['tokens', 2])).toBe('[tokens, 2]');
    expect(elementCount([])).toBe(1);
  });

  it('shows the right elements through any chain of views', () => {
    const step = fc.record({ kind: fc.nat(4), axis: fc.nat(9), a: fc.nat(99), b: fc.nat(99) });
    fc.assert(
      fc.property(shapes, fc.array(step, { maxLength: 6 }), (shape, steps) => {
        let view: Tensor = empty(shape, { device: 'meta' });
        const base = view;
        let model: Model = { shape, list: positions(view) };
        for (const { kind, axis: pick, a, b } of steps) {
          const axis = pick % Math.max(1, model.shape.length);
          const moved = applyStep(view, model, kind, axis, a, b);
          if (moved === undefined) continue;
          [view, model] = moved;
          expect(view.shape).toEqual(model.shape);
          expect(positions(view)).toEqual(model.list);
          expect(view.base).toBe(base);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it('refuses what has no view', () => {
    const x = empty([4, 6], { device: 'meta' });
    expect(() => x.unflatten(1, [4, 2])).toThrow(ShapeError);
    expect(() => x.select(0, 4)).toThrow(ShapeError);
    expect(() => x.select(0, -1)).toThrow(ShapeError);
    expect(() => x.narrow(1, 4, 3)).toThrow(ShapeError);
    expect(() => x.narrow(1, 0, 3).flatten(0)).toThrow(ShapeError);
    expect(() => x.narrow(1, 0, 3).reshape([12])).toThrow(ShapeError);
    expect(() => x.reshape([5, 5])).toThrow(ShapeError);
    expect(() => empty([2.5], { device: 'meta' })).toThrow(ShapeError);
    expect(() => empty([-1], { device: 'meta' })).toThrow(ShapeError);
  });
});

/**
 * One random view operation on both; undefined where it does not apply (flatten of what does not lie densely must say
 * so).
 */
function applyStep(
  view: Tensor,
  model: Model,
  kind: number,
  axis: number,
  a: number,
  b: number,
): [Tensor, Model] | undefined {
  const dim = model.shape[axis];
  if (dim === undefined) return undefined;
  const { shape, list } = model;
  if (kind === 0) {
    const divisors = Array.from({ length: Math.max(dim, 1) }, (_, i) => i + 1).filter((d) => dim % d === 0);
    const first = divisors[a % divisors.length] as number;
    const sizes = [first, dim / first];
    return [view.unflatten(axis, sizes), { shape: shape.toSpliced(axis, 1, ...sizes), list }];
  }
  if (kind === 1) {
    const joined = [...shape.slice(0, axis), elementCount(shape.slice(axis))];
    try {
      return [view.flatten(axis), { shape: joined, list }];
    } catch (error) {
      expect(error).toBeInstanceOf(ShapeError);
      expect(view.isContiguous).toBe(false);
      return undefined;
    }
  }
  if (kind === 2 && dim > 0) {
    const index = a % dim;
    return [view.select(axis, index), { shape: shape.toSpliced(axis, 1), list: keep(model, axis, (i) => i === index) }];
  }
  if (kind === 3) {
    const start = a % (dim + 1);
    const length = b % (dim - start + 1);
    const kept = keep(model, axis, (i) => i >= start && i < start + length);
    return [view.narrow(axis, start, length), { shape: shape.with(axis, length), list: kept }];
  }
  if (kind === 4 && view.isContiguous) {
    const turned = shape.toReversed();
    return [view.reshape(turned), { shape: turned, list }];
  }
  return undefined;
}
