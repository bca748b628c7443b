/**
 * The reference maths of LLM.int8() against golden vectors (int8-vectors.ts), and the rules for zeros, NaN and
 * infinity. Quantization of a whole tensor is reference-absmax.test.ts, whole layers of real checkpoints are
 * int8-steps.test.ts.
 */
import {
  ArgumentError,
  DtypeError,
  int8LinearMatmul,
  int8MmDequant,
  int8VectorwiseDequant,
  int8VectorwiseQuant,
  int8WeightQuant,
  llmInt8Linear,
  ShapeError,
  type Tensor,
  tensor,
  uniformGenerator,
} from '@metashard/core';
import '@metashard/cpu';
import { describe, expect, it } from 'vitest';
import { half, halfSteps, LAYER, ROWS } from './int8-vectors.js';

const { NaN: nan, POSITIVE_INFINITY: inf } = Number;

/** CA, SCA and outlierCols as plain numbers. */
function quant(x: Tensor, threshold: number, options?: Parameters<typeof int8VectorwiseQuant>[2]): unknown[] {
  const { CA, SCA, outlierCols } = int8VectorwiseQuant(x, threshold, options);
  return [CA.toArray(), SCA.toArray(), outlierCols?.toArray() ?? null];
}

describe('int8VectorwiseQuant', () => {
  it.each(ROWS)('vector $name', ({ x, threshold, CA, SCA, columns }) => {
    expect(quant(half(x), threshold)).toEqual([CA, SCA, threshold === 0 ? null : columns]);
  });

  it('per row: only the elements themselves leave, so rows do not depend on each other', () => {
    const rows = [
      [1, -2, 0.5, 5, 3, -1],
      [0.25, 1.5, 0.1, -7.5, 0, 2],
    ];
    const [CA, SCA, columns] = quant(half(rows), 6, { outliers: 'per-row' });
    expect([CA, SCA, columns]).toEqual([
      [
        [25, -51, 13, 127, 76, -25],
        [16, 95, 6, 0, 0, 127],
      ],
      [5, 2],
      [3],
    ]);
    for (const [t, row] of rows.entries())
      expect(quant(half([row]), 6, { outliers: 'per-row' })[0]).toEqual([(CA as number[][])[t]]);
  });

  it('takes any rank, views and dtypes; values are the own dtype, not float16', () => {
    const x = tensor([
      [
        [1, 2],
        [3, 4],
      ],
      [
        [5, 6],
        [7, 8],
      ],
    ]);
    const { CA, SCA } = int8VectorwiseQuant(x);
    expect([CA.shape, SCA.toArray()]).toEqual([
      [2, 2, 2],
      [2, 4, 6, 8],
    ]);
    expect(int8VectorwiseQuant(x.select(2, 0)).SCA.toArray()).toEqual([3, 7]);
    expect(quant(tensor([5.9980469]), 6)[2]).toEqual([]); // float16 would round it to 6
    expect(quant(tensor([1e6, 4e5], { dtype: 'bfloat16' }), 0)).toEqual([[127, 51], [999424], null]);
    expect(int8VectorwiseQuant(tensor([], { shape: [0, 4] }), 6).outlierCols?.shape).toEqual([0]);
  });

  it('keeps NaN and infinity: an outlier with a threshold, the row scale without', () => {
    expect(
      quant(
        tensor([
          [1, nan, 2],
          [1, 0, -inf],
        ]),
        6,
      ),
    ).toEqual([
      [
        [64, 0, 0],
        [127, 0, 0],
      ],
      [2, 1],
      [1, 2],
    ]);
    expect(
      quant(
        tensor([
          [1, nan],
          [1, inf],
          [1, 2],
        ]),
        0,
      ),
    ).toEqual([
      [
        [0, 0],
        [0, 0],
        [64, 127],
      ],
      [nan, inf, 2],
      null,
    ]);
  });

  it('refuses a threshold below 0, whole numbers and scalars', () => {
    expect(() => int8VectorwiseQuant(tensor([1]), -1)).toThrow(ArgumentError);
    expect(() => int8VectorwiseQuant(tensor([1]), nan)).toThrow(ArgumentError);
    expect(() => int8VectorwiseQuant(tensor([1], { dtype: 'int32' }))).toThrow(DtypeError);
    expect(() => int8VectorwiseQuant(tensor([1], { shape: [] }))).toThrow(ShapeError);
  });

  it('comes back within half a step of its row', () => {
    const next = uniformGenerator(5);
    const x = tensor(
      Float32Array.from({ length: 24 }, () => next() * 8 - 4),
      { shape: [4, 6] },
    );
    const { CA, SCA } = int8VectorwiseQuant(x);
    const back = int8VectorwiseDequant(CA, SCA).toFloat32Array();
    const scales = SCA.toFloat32Array();
    x.toFloat32Array().forEach((value, i) => {
      expect(Math.abs((back[i] as number) - value)).toBeLessThan(
        ((scales[Math.floor(i / 6)] as number) / 127) * 0.5001,
      );
    });
  });
});

describe('int8LinearMatmul and int8MmDequant', () => {
  it('are exact for any shape', () => {
    const next = uniformGenerator(3);
    const random = (shape: number[]): Tensor =>
      tensor(
        Int8Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => Math.floor(next() * 255) - 128),
        { dtype: 'int8', shape },
      );
    const [a, b] = [random([3, 5, 499]), random([7, 499])];
    const out = int8LinearMatmul(a, b);
    expect([out.dtype, out.shape]).toEqual(['int32', [3, 5, 7]]);
    const [x, w] = [a.toInt8Array(), b.toInt8Array()];
    const expected = Array.from({ length: 15 * 7 }, (_, i) => {
      const [t, n] = [Math.floor(i / 7), i % 7];
      return Number(
        Array.from({ length: 499 }, (_, k) => BigInt((x[t * 499 + k] as number) * (w[n * 499 + k] as number))).reduce(
          (s, v) => s + v,
        ),
      );
    });
    expect([...out.toInt32Array()]).toEqual(expected);
    const largest = int8LinearMatmul(
      tensor(new Int8Array(133_144).fill(-127), { dtype: 'int8' }),
      tensor(new Int8Array(133_144).fill(127), { dtype: 'int8', shape: [1, 133_144] }),
    );
    expect(largest.toArray()).toEqual([-133_144 * 127 * 127]);
  });

  it('say what is wrong', () => {
    const q = (shape: number[], dtype: 'int8' | 'int32' = 'int8'): Tensor =>
      tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)), { dtype, shape });
    expect(() => int8LinearMatmul(q([2, 3]), q([3]))).toThrow('expected CB of shape [N, K], got [3]');
    expect(() => int8LinearMatmul(q([2, 3]), q([2, 4]))).toThrow('expected CB with 3 columns, got 4');
    expect(() => int8LinearMatmul(tensor([[1]]), q([1, 1]))).toThrow('expected CA as int8, got float32');
    expect(() => int8LinearMatmul(q([1, 133_145]), q([1, 133_145]))).toThrow('at most 133144 columns');
    expect(() => int8MmDequant(q([2, 2]), tensor([1, 1]), tensor([1, 1]))).toThrow('expected acc as int32, got int8');
    expect(() => int8MmDequant(q([2, 2], 'int32'), half([1, 1]), tensor([1, 1]))).toThrow(DtypeError);
    expect(() => int8MmDequant(q([2, 2], 'int32'), tensor([1]), tensor([1, 1]))).toThrow(
      'expected SCA of 2 values, got [1]',
    );
    expect(() => int8MmDequant(q([2, 2], 'int32'), tensor([1, 1]), tensor([1, 1]), tensor([1]))).toThrow(
      'expected bias of 2 values',
    );
  });

  it('scale by row and column, negative scales too, and add the bias once', () => {
    const acc = tensor(
      [
        [16129, -32258],
        [0, 16129],
      ],
      { dtype: 'int32' },
    );
    expect(int8MmDequant(acc, tensor([2, -3]), tensor([0.5, 4]), half([1, -1])).toArray()).toEqual([
      [2, -17],
      [1, -13],
    ]);
  });
});

describe('llmInt8Linear', () => {
  const { CB, SCB } = int8WeightQuant(half(LAYER.weight));
  const bias = half(LAYER.bias);

  it('73: end to end with outliers', () => {
    expect([CB.toArray(), SCB.toArray()]).toEqual([LAYER.CB, LAYER.SCB]);
    const { out, CA, SCA, outlierCols, accumulators } = llmInt8Linear(half(LAYER.x), CB, SCB, { threshold: 6, bias });
    expect(CA.toArray()).toEqual([
      [64, -127, 0, 32],
      [11, 64, 0, 127],
    ]);
    expect([SCA.toArray(), outlierCols?.toArray()]).toEqual([[2, 3], [2]]);
    expect(accumulators.toArray()).toEqual([
      [14240, -3937, -18817],
      [12385, 25654, 2563],
    ]);
    expect(out.dtype).toBe('float16');
    expect(halfSteps(out, LAYER.outWithOutliers)).toBeLessThanOrEqual(1);
  });

  it('74: without a threshold', () => {
    const { out, accumulators, outlierCols } = llmInt8Linear(half(LAYER.x), CB, SCB, { threshold: 0, bias });
    expect(accumulators.toArray()).toEqual([
      [5608, -17145, 6059],
      [12049, 28321, 778],
    ]);
    expect(outlierCols).toBeNull();
    expect(halfSteps(out, LAYER.outWithout)).toBeLessThanOrEqual(1);
  });

  it('75: a row alone differs per batch, and does not per row', () => {
    const alone = half(LAYER.x.slice(1));
    const row = (t: Tensor): unknown => (t.toArray() as number[][]).at(-1);
    const options = { threshold: 6, bias };
    const perBatch = llmInt8Linear(alone, CB, SCB, options).out;
    expect(halfSteps(perBatch, LAYER.outWithout.slice(1))).toBeLessThanOrEqual(1);
    expect(row(perBatch)).not.toEqual(row(llmInt8Linear(half(LAYER.x), CB, SCB, options).out));
    const perRow = { ...options, outliers: 'per-row' } as const;
    expect(row(llmInt8Linear(alone, CB, SCB, perRow).out)).toEqual(
      row(llmInt8Linear(half(LAYER.x), CB, SCB, perRow).out),
    );
  });

  it('is the product of its parts, in every rank', () => {
    const x = tensor([[[1, -2, 5, 0.5]], [[0.25, 1.5, -0.5, 3]]]);
    const { out, CA, SCA, accumulators } = llmInt8Linear(x, CB, SCB, { threshold: 6, bias });
    expect(out.shape).toEqual([2, 1, 3]);
    expect(out.toArray()).toEqual(int8MmDequant(int8LinearMatmul(CA, CB), SCA, SCB, bias).toArray());
    expect(accumulators.shape).toEqual([2, 1, 3]);
    expect(llmInt8Linear(tensor([1, 2, 3, 4]), CB, SCB).out.shape).toEqual([3]);
    expect(llmInt8Linear(tensor([], { shape: [0, 4] }), CB, SCB, { threshold: 6, bias }).out.shape).toEqual([0, 3]);
  });

  it('lets NaN and infinity through, and a large bfloat16 stays finite', () => {
    for (const threshold of [0, 6]) {
      const out = llmInt8Linear(
        tensor([
          [1, nan, 1, 1],
          [1, 1, 1, 1],
        ]),
        CB,
        SCB,
        { threshold },
      ).out.toArray() as number[][];
      expect(out[0]).toEqual([nan, nan, nan]);
      expect(out[1]?.every(Number.isFinite)).toBe(true);
      const withInf = llmInt8Linear(tensor([[inf, 1, 1, 1]]), CB, SCB, { threshold }).out.toArray() as number[][];
      expect(withInf[0]?.some(Number.isFinite)).toBe(false);
    }
    const big = llmInt8Linear(tensor([[60_000, 60_000, 0, 0]], { dtype: 'bfloat16' }), CB, SCB, { threshold: 6 }).out;
    expect(big.dtype).toBe('bfloat16');
    expect((big.toArray() as number[][])[0]?.[1]).toBeGreaterThan(65504);
  });
});
