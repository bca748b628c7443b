/** The reference maths of rounding and of quantization of a whole tensor, by absmax and by zero-point. */
import {
  DtypeError,
  dequantizeAbsmax,
  dequantizeZeropoint,
  int8VectorwiseQuant,
  quantizeAbsmax,
  quantizeZeropoint,
  roundHalfEven,
  tensor,
} from '@metashard/core';
import '@metashard/cpu';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';

const { NaN: nan, POSITIVE_INFINITY: inf } = Number;

describe('rounding', () => {
  it('goes to the nearest, ties to even', () => {
    const values = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999999999999994, -0.3, 126.5, 7, 2 ** 52 + 1];
    expect(values.map((v) => roundHalfEven(v) + 0)).toEqual([0, 2, 2, 0, -2, -2, 0, 0, 126, 7, 2 ** 52 + 1]);
    expect(roundHalfEven(nan)).toBeNaN();
  });
});

describe('absmax and zero-point of a whole tensor', () => {
  const values = [1.2, -0.5, -4.3, 1.2, -3.1, 0.8, 2.4, 5.4];
  it.each(['float32', 'float16', 'bfloat16'] as const)('[1.2, -0.5, …, 5.4] in %s', (dtype) => {
    const x = tensor(values, { dtype });
    const { q, scale } = quantizeAbsmax(x);
    // 2.4 and 5.4 are 2.40625 and 5.40625 in bfloat16, whose own quotient is 56.53.
    expect(q.toArray()).toEqual([28, -12, -101, 28, -73, 19, dtype === 'bfloat16' ? 57 : 56, 127]);
    expect(scale).toBeCloseTo(127 / 5.4, 1);
    expect(int8VectorwiseQuant(x).CA.toArray()).toEqual(q.toArray());
    dequantizeAbsmax(q, scale)
      .toFloat32Array()
      .forEach((value, i) => {
        expect(Math.abs(value - (values[i] as number))).toBeLessThan(0.5 / scale + 0.02);
      });
  });

  it('comes back within half a step', () => {
    const numbers = fc.array(fc.float({ min: -1000, max: 1000, noNaN: true }), { minLength: 1, maxLength: 20 });
    fc.assert(
      fc.property(numbers, (list) => {
        const x = tensor(list, { shape: [1, list.length] });
        const a = quantizeAbsmax(x);
        const z = quantizeZeropoint(x);
        const backA = dequantizeAbsmax(a.q, a.scale).toFloat32Array();
        const backZ = dequantizeZeropoint(z.q, z.scale, z.zeroPoint).toFloat32Array();
        const bound = (value: number, scale: number): number => (0.5 / scale) * 1.001 + Math.abs(value) * 1e-6;
        for (const [i, value] of x.toFloat32Array().entries()) {
          expect(Math.abs((backA[i] as number) - value)).toBeLessThanOrEqual(bound(value, a.scale));
          // The range is rounded to whole steps at both ends, which can cost another half step there.
          expect(Math.abs((backZ[i] as number) - value)).toBeLessThanOrEqual(bound(value, z.scale) * 2);
        }
        expect(a.q.shape).toEqual([1, list.length]);
      }),
    );
  });

  it('zero-point uses the full range, and keeps a repeated value exactly', () => {
    const { q, scale, zeroPoint } = quantizeZeropoint(tensor([0, 1, 2, 4]));
    expect([q.toArray(), scale, zeroPoint]).toEqual([[-127, -63, 0, 127], 63.5, 127]);
    for (const value of [3, -0.25, 0]) {
      const constant = quantizeZeropoint(tensor([value, value]));
      expect(dequantizeZeropoint(constant.q, constant.scale, constant.zeroPoint).toArray()).toEqual([value, value]);
    }
    const empty = quantizeZeropoint(tensor([]));
    expect([empty.q.shape, empty.scale, empty.zeroPoint]).toEqual([[0], 1, 0]);
  });

  it('zero-point spans from the least to the largest value, where zero is outside, too', () => {
    const above = quantizeZeropoint(tensor([3, 4, 5]));
    expect([above.q.toArray(), above.scale, above.zeroPoint]).toEqual([[-127, 0, 127], 127, 508]);
    const below = quantizeZeropoint(tensor([-3, -4, -5]));
    expect([below.q.toArray(), below.scale, below.zeroPoint]).toEqual([[127, 0, -127], 127, -508]);
  });

  it('both ways back keep the shape, and refuse other dtypes by name', () => {
    const { q, scale, zeroPoint } = quantizeZeropoint(tensor([[3, 4, 5]]));
    expect(dequantizeZeropoint(q, scale, zeroPoint).toArray()).toEqual([[3, 4, 5]]);
    expect(dequantizeAbsmax(q, 127).toArray()).toEqual([[-1, 0, 1]]);
    const x = tensor([1], { dtype: 'int8' });
    expect(() => quantizeAbsmax(x)).toThrow(/^quantizeAbsmax: expected .*, got int8/);
    expect(() => quantizeZeropoint(x)).toThrow(/^quantizeZeropoint: expected .*, got int8/);
    expect(() => dequantizeAbsmax(tensor([1]), 1)).toThrow('dequantizeAbsmax: expected int8, got float32');
    expect(() => dequantizeZeropoint(tensor([1]), 1, 0)).toThrow('dequantizeZeropoint: expected int8, got float32');
  });

  it('shows zeros as zeros, NaN and infinity as what they are', () => {
    const zero = quantizeAbsmax(tensor([0, -0]));
    expect([zero.q.toArray(), zero.scale]).toEqual([[0, 0], 1]);
    for (const odd of [nan, inf]) {
      const { q, scale } = quantizeAbsmax(tensor([1, odd]));
      expect(q.toArray()).toEqual([0, 0]);
      expect(dequantizeAbsmax(q, scale).toFloat32Array().every(Number.isNaN)).toBe(true);
    }
    expect(() => quantizeAbsmax(tensor([1], { dtype: 'int8' }))).toThrow(DtypeError);
    expect(() => dequantizeAbsmax(tensor([1]), 1)).toThrow(DtypeError);
    expect(quantizeAbsmax(tensor([1e-40, -5e-41])).q.toArray()).toEqual([127, -64]); // 127 / absmax is no float32
  });
});
