/**
 * Forward and backward of Linear8bitLt: a worked example, the closed form of the gradients, and how far outputs lie
 * from the float layer's. Runs on the cpu backend. The state of the weights is meta-int8.test.ts.
 */
import '@metashard/cpu';
import { empty, randn, type Tensor, tensor } from '@metashard/core';
import { Int8Params, Linear8bitLt, nn } from '@metashard/meta';
import { describe, expect, it } from 'vitest';
import { LAYER } from './int8-vectors.js';

const values = (t: Tensor | null | undefined): number[] => Array.from((t as Tensor).toFloat32Array());

const worst = (a: Tensor, b: Tensor): number => {
  const [x, y] = [a.toFloat32Array(), b.toFloat32Array()];
  return x.reduce((most, value, i) => Math.max(most, Math.abs(value - (y[i] as number))), 0);
};

describe('forward and backward', () => {
  it('a worked example, with its integers: an outlier column, a row alone, outliers by row', () => {
    const layer = new Linear8bitLt(4, 3, { hasFp16Weights: false, threshold: 6, dtype: 'float16' });
    layer.loadStateDict(
      new Map([
        ['weight', tensor(LAYER.weight)],
        ['bias', tensor(LAYER.bias)],
      ]),
    );
    layer.to('cpu');
    expect(layer.weight.CB?.toArray()).toEqual(LAYER.CB);
    expect(layer.weight.SCB?.toArray()).toEqual(LAYER.SCB);
    const { x, outWithOutliers: want } = LAYER;
    const out = layer.forward(tensor(x, { dtype: 'float16' })).toArray() as number[][];
    for (const [t, row] of out.entries()) {
      for (const [n, y] of row.entries()) expect(y / (want[t]?.[n] as number)).toBeCloseTo(1, 2.7);
    }
    const alone = layer.forward(tensor([x[1] as number[]], { dtype: 'float16' })).toArray() as number[][];
    expect(alone[0]?.[1]).not.toBe(out[1]?.[1]);
    const perRow = new Linear8bitLt(4, 3, { hasFp16Weights: false, threshold: 6, outliers: 'per-row' });
    perRow.loadStateDict(layer.stateDict());
    const [both, one] = [x, [x[1] as number[]]].map((rows) => perRow.forward(tensor(rows)).toArray() as number[][]);
    expect(both?.[1]).toEqual(one?.[0]);
  });

  it('no rows give no rows, and zero gradients', () => {
    const layer = new Linear8bitLt(32, 48, { threshold: 6 });
    expect(layer.forward(empty([0, 32])).shape).toEqual([0, 48]);
    const { gradInput, gradWeight, gradBias } = layer.backward(empty([0, 32]), empty([0, 48]));
    expect(gradInput.shape).toEqual([0, 32]);
    expect([gradWeight?.shape, new Set(values(gradWeight))]).toEqual([[48, 32], new Set([0])]);
    expect([gradBias?.shape, new Set(values(gradBias))]).toEqual([[48], new Set([0])]);
  });

  it('backward is the closed form: g · W_int8, gᵀ · x, Σ g', () => {
    const [T, K, N] = [6, 10, 7];
    const [x, g] = [randn([2, 3, K], { seed: 1 }), randn([2, 3, N], { seed: 2 })];
    const layer = new Linear8bitLt(K, N, { threshold: 6 });
    const { gradInput, gradWeight, gradBias } = layer.backward(x, g);
    const twin = Linear8bitLt.fromLinear(layer, { hasFp16Weights: false });
    twin.weight = new Int8Params(layer.weight.data).to('cpu');
    const [W, xs, gs] = [values(twin.dequantize()), values(x), values(g)];
    const sum = (count: number, term: (i: number) => number): number =>
      Array.from({ length: count }, (_, i) => term(i)).reduce((a, b) => a + b, 0);
    const at = (array: number[], row: number, column: number, width: number): number =>
      array[row * width + column] as number;
    const dX = Array.from({ length: T * K }, (_, i) =>
      sum(N, (n) => at(gs, Math.floor(i / K), n, N) * at(W, n, i % K, K)),
    );
    const dW = Array.from({ length: N * K }, (_, i) =>
      sum(T, (t) => at(gs, t, Math.floor(i / K), N) * at(xs, t, i % K, K)),
    );
    const dB = Array.from({ length: N }, (_, n) => sum(T, (t) => at(gs, t, n, N)));
    expect(gradInput.shape).toEqual([2, 3, K]);
    expect(worst(gradInput, tensor(dX))).toBeLessThan(1e-5);
    expect(worst(gradWeight as Tensor, tensor(dW))).toBeLessThan(1e-5);
    expect(worst(gradBias as Tensor, tensor(dB))).toBeLessThan(1e-5);
    expect(twin.backward(x, g).gradWeight).toBeNull();
    expect(values(twin.backward(x, g).gradInput)).toEqual(values(gradInput));
    expect(() => layer.backward(x, randn([2, 3, N + 1]))).toThrow(/expected gradOutput \[2, 3, 7\]/);
  });

  it('outputs stay close to the float layer in every dtype', () => {
    for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
      for (const threshold of [0, 6]) {
        const float = new nn.Linear(64, 48, { dtype });
        const layer = Linear8bitLt.fromLinear(float, { hasFp16Weights: false, threshold });
        const x = randn([64, 64], { seed: 11, dtype });
        const [got, want] = [layer.forward(x), float.forward(x)];
        expect(got.dtype).toBe(dtype);
        const [a, b] = [got.toFloat32Array(), want.toFloat32Array()];
        const outside = a.filter(
          (value, i) => Math.abs(value - (b[i] as number)) > 0.01 + 0.1 * Math.abs(b[i] as number),
        );
        expect(outside.length / a.length).toBeLessThan(0.0175);
      }
    }
  });

  it('the bias keeps its dtype', () => {
    const options = { hasFp16Weights: false, threshold: 6 };
    const layer = new Linear8bitLt(32, 96, options).to('cpu');
    layer.forward(randn([2, 32], { dtype: 'float16' }));
    expect(layer.bias?.dtype).toBe('float32');
    expect(new Linear8bitLt(32, 96, { ...options, bias: false }).to('cpu').bias).toBeNull();
  });
});
