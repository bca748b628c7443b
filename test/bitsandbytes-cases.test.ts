/**
 * What bitsandbytes' own tests ask of LLM.int8(), and what they leave out: the cases of the project's LLM.int8() notes,
 * section 3, A to E, G and H, under their numbers. docs/quality.md lists the cases that are dropped and those that ask
 * for more here. Vectors 66 to 75 (int8-vectors.ts) by the reference maths are reference-maths.test.ts; offsets beyond
 * 2^31 elements are ops-cpu.test.ts. One long file, because a list of numbered cases is read as a whole.
 */
import '@metashard/cpu';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  ArgumentError,
  CheckpointError,
  callOp,
  DtypeError,
  empty,
  F,
  int8LinearMatmul,
  int8MmDequant,
  int8VectorwiseQuant,
  int8WeightQuant,
  llmInt8Linear,
  loadSafetensors,
  randn,
  ShapeError,
  saveSafetensors,
  Tensor,
  tensor,
  uniformGenerator,
} from '@metashard/core';
import { Int8Params, Linear8bitLt, nn, Parameter } from '@metashard/meta';
import { describe, expect, it } from 'vitest';
import { half, halfSteps, LAYER, ROWS } from './int8-vectors.js';

type Dtype = 'float32' | 'float16' | 'bfloat16';
const DTYPES = ['float16', 'bfloat16', 'float32'] as const;
const values = (t: Tensor | null | undefined): number[] => Array.from((t as Tensor).toFloat32Array());

/** Whole numbers from -128 to 126 in int8. */
function int8s(shape: readonly number[], seed: number): Tensor {
  const next = uniformGenerator(seed);
  const numbers = Int8Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => Math.floor(next() * 255) - 128);
  return tensor(numbers, { dtype: 'int8', shape });
}

/** Share of elements where |got - want| > a + r · |want|. */
function outside(got: ArrayLike<number>, want: ArrayLike<number>, a: number, r: number): number {
  expect(got.length).toBe(want.length);
  let count = 0;
  for (let i = 0; i < got.length; i++) {
    if (!(Math.abs((got[i] as number) - (want[i] as number)) <= a + r * Math.abs(want[i] as number))) count++;
  }
  return got.length === 0 ? 0 : count / got.length;
}

/** x with its last two dimensions swapped, as a view. */
function transposed(x: Tensor): Tensor {
  const [rows, columns] = x.shape as [number, number];
  return new Tensor({ ...x.parts, dims: [columns, rows], strides: [1, columns], base: x });
}

const matmul = (CA: Tensor, CB: Tensor): Tensor => callOp('int8_matmul', [CA, CB])[0] as Tensor;

/** Whether acc is CA · CBᵀ: both multiplied by a vector of small whole numbers, exactly (Freivalds 1979). */
function isProduct(acc: Tensor, CA: Tensor, CB: Tensor, seed: number): boolean {
  const [M, K, N] = [CA.dims[0] as number, CA.dims[1] as number, CB.dims[0] as number];
  const [a, b, c] = [CA.toInt8Array(), CB.toInt8Array(), acc.toInt32Array()];
  const next = uniformGenerator(seed);
  const v = Float64Array.from({ length: N }, () => Math.floor(next() * 201) - 100);
  const bv = new Float64Array(K);
  for (let n = 0; n < N; n++)
    for (let k = 0; k < K; k++) bv[k] = (bv[k] as number) + (b[n * K + k] as number) * (v[n] as number);
  for (let t = 0; t < M; t++) {
    let [left, right] = [0, 0];
    for (let n = 0; n < N; n++) left += (c[t * N + n] as number) * (v[n] as number);
    for (let k = 0; k < K; k++) right += (a[t * K + k] as number) * (bv[k] as number);
    if (left !== right) return false;
  }
  return true;
}

describe('A: the int8 product', () => {
  it.each([
    ['1', [128, 499], [512, 499]],
    ['2', [128, 512], [512, 512]],
    ['5', [10, 20], [30, 20]],
  ] as const)('%s: %j · %jᵀ is exact, int32', (_, a, b) => {
    const [CA, CB] = [int8s(a, 1), int8s(b, 2)];
    const acc = matmul(CA, CB);
    expect([acc.dtype, acc.shape, acc.device]).toEqual(['int32', [a[0], b[0]], 'cpu:0']);
    expect([1, 2, 3].map((seed) => isProduct(acc, CA, CB, seed))).toEqual([true, true, true]);
    if (a[0] === 10) expect(acc.toArray()).toEqual(int8LinearMatmul(CA, CB).toArray());
  });

  it.each([
    ['3', [128, 256, 499], [512, 499]],
    ['4', [128, 256, 512], [512, 512]],
  ] as const)('%s: %j · %jᵀ is exact on its rows', (_, [B, T, K], b) => {
    const [CA, CB] = [int8s([B * T, K], 3), int8s(b, 4)];
    expect(isProduct(matmul(CA, CB), CA, CB, 5)).toBe(true);
    const few = CA.narrow(0, 0, 4).reshape([2, 2, K]);
    expect(int8LinearMatmul(few, CB).shape).toEqual([2, 2, 512]);
    expect(int8LinearMatmul(few, CB).toInt32Array()).toEqual(matmul(CA, CB).narrow(0, 0, 4).toInt32Array());
  });

  it('6: into memory given for it', () => {
    const [CA, CB] = [int8s([10, 20], 6), int8s([30, 20], 7)];
    // The spec of an output says where it goes; its memory is the caller's op backend's.
    const spec = { dims: [10, 30], dtype: 'int32' } as const;
    expect((callOp('int8_matmul', [CA, CB], [], [spec])[0] as Tensor).toArray()).toEqual(matmul(CA, CB).toArray());
    const wrong = { dims: [10, 31], dtype: 'int32' } as const;
    expect(() => callOp('int8_matmul', [CA, CB], [], [wrong])).toThrow(/expected accumulators of shape \[10, 30\]/);
  });

  it('8: each wrong argument has an error of its own', () => {
    const [CA, CB] = [int8s([2, 4], 1), int8s([3, 4], 2)];
    expect(() => int8LinearMatmul(CA, int8s([4], 3))).toThrow('expected CB of shape [N, K], got [4]');
    expect(() => matmul(int8s([4], 3), CB)).toThrow(/expected CA of rank 2, got \[4\]/);
    expect(() => matmul(tensor([[1, 2, 3, 4]]), CB)).toThrow(DtypeError);
    expect(() => matmul(CA, randn([3, 4]))).toThrow(/expected CB as int8, got float32/);
    expect(() => matmul(CA, int8s([3, 5], 1))).toThrow(/expected CB of shape \[3, 4\], got \[3, 5\]/);
    expect(() => callOp('int8_matmul', [CA, CB], [], [{ dims: [2, 3], dtype: 'float32' }])).toThrow(/int32/);
    expect(() => int8LinearMatmul(tensor(1 as unknown as number[], { dtype: 'int8', shape: [] }), CB)).toThrow();
    // More than bitsandbytes: no rows are no error.
    expect(matmul(empty([0, 4], { dtype: 'int8' }), CB).shape).toEqual([0, 3]);
  });
});

/** CA, SCA and the outlier columns of the cpu's kernel, as numbers. */
function quantize(x: Tensor, threshold: number): { CA: Int8Array; SCA: Float32Array; columns: number[] } {
  const [CA, SCA, columns] = callOp('int8_quantize', [F.cast(x, 'float32')], [threshold, 0]) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  const [count, ...listed] = columns.toInt32Array();
  return { CA: CA.toInt8Array(), SCA: SCA.toFloat32Array(), columns: listed.slice(0, count) };
}

/** Largest |q - x · 127 / absmax|, and whether every row's scale is its absmax. */
function checkRows(x: Tensor, CA: Int8Array, SCA: Float32Array): { worst: number; scales: boolean } {
  const numbers = x.toFloat32Array();
  const K = x.dims[1] as number;
  let [worst, scales] = [0, true];
  for (let t = 0; t < SCA.length; t++) {
    const row = numbers.subarray(t * K, (t + 1) * K);
    let absmax = 0;
    for (const value of row) absmax = Math.max(absmax, Math.abs(value));
    scales &&= absmax === SCA[t];
    for (let k = 0; k < K; k++) {
      worst = Math.max(worst, Math.abs((CA[t * K + k] as number) - ((row[k] as number) * 127) / absmax));
    }
  }
  return { worst, scales };
}

describe('B: quantization', () => {
  const loud = (): Tensor => {
    const numbers = randn([10, 20], { seed: 9 }).toFloat32Array();
    numbers[20] = 1000;
    return tensor(numbers, { dtype: 'float16', shape: [10, 20] });
  };

  it.each([
    [1, 2, 4],
    [8, 128, 256],
    [2048, 2048, 512],
    [1024, 1024, 4096],
  ])('7, 12: activations and weights of M %i, N %i, K %i', (M, N, K) => {
    const a = randn([M, K], { dtype: 'float16', seed: M });
    const { CA, SCA } = quantize(a, 0);
    expect(checkRows(a, CA, SCA)).toEqual({ worst: expect.closeTo(0.5, 0), scales: true });
    const w = randn([N, K], { dtype: 'float16', seed: N + 1 });
    const { CB, SCB } = F.quantizeWeight(w);
    const rows = checkRows(w, CB.toInt8Array(), SCB.toFloat32Array());
    expect([rows.worst <= 0.5001, rows.scales]).toEqual([true, true]);
    const acc = matmul(tensor(CA, { dtype: 'int8', shape: [M, K] }), CB);
    expect(isProduct(acc, tensor(CA, { dtype: 'int8', shape: [M, K] }), CB, 1)).toBe(true);
  });

  it('9: one value of 1000, without a threshold', () => {
    const { CA, SCA, outlierCols } = int8VectorwiseQuant(loud());
    expect([CA.dtype, CA.shape, SCA.dtype, SCA.shape, outlierCols]).toEqual(['int8', [10, 20], 'float32', [10], null]);
    expect(SCA.toFloat32Array()[1]).toBe(1000);
    expect([...CA.narrow(0, 1, 1).toInt8Array()].filter((q) => q === 0).length).toBeGreaterThan(15);
    expect(quantize(loud(), 0)).toEqual({ CA: CA.toInt8Array(), SCA: SCA.toFloat32Array(), columns: [] });
  });

  it('10: the same with threshold 6', () => {
    const x = loud();
    const { CA, SCA, outlierCols } = int8VectorwiseQuant(x, 6);
    expect(outlierCols?.toArray()).toEqual([0]);
    expect(CA.select(1, 0).contiguous().toArray()).toEqual(Array(10).fill(0));
    const others = values(x).slice(21, 40).map(Math.abs);
    expect(SCA.toFloat32Array()[1]).toBe(Math.max(...others));
    expect(quantize(x, 6)).toEqual({ CA: CA.toInt8Array(), SCA: SCA.toFloat32Array(), columns: [0] });
  });

  it('11: a threshold nothing reaches gives an empty list, not none', () => {
    const x = randn([10, 20], { seed: 9, dtype: 'float16' });
    expect(int8VectorwiseQuant(x, 6).outlierCols?.toArray()).toEqual([]);
    expect(quantize(x, 6).columns).toEqual([]);
  });

  it('13: the product errs no more than 1.025 × the plain one of the same integers', () => {
    for (const seed of Array(20).keys()) {
      const [x, w] = [randn([32, 256], { seed }), randn([64, 256], { seed: seed + 50 })];
      const { CB, SCB } = F.quantizeWeight(w);
      const exact = F.linear(x, w).toFloat32Array();
      const error = (out: Tensor): number => {
        const got = out.toFloat32Array();
        return got.reduce((sum, value, i) => sum + Math.abs(value - (exact[i] as number)), 0) / got.length;
      };
      const plain = llmInt8Linear(x, CB, SCB);
      const native = F.int8Linear(x, CB, SCB, null, { threshold: 0, outliers: 'per-batch' });
      expect(error(native)).toBeLessThanOrEqual(1.025 * error(plain.out));
    }
  });

  it.each([
    ['14', 512, 1024, 6],
    ['14', 2048, 4096, 6],
    ['15', 512, 4096, 3.5],
    ['15', 2048, 1024, 3.5],
  ])('%s: [%i, %i] with planted columns and threshold %d comes back', (_, T, K, threshold) => {
    // At thresholds 2 and 3, as published, all or nearly all columns of such data are outliers and nothing is tested.
    const x = randn([T, K], { seed: K, dtype: 'float16' }).toFloat32Array();
    const planted = [1, 70, 500, 777, K - 1];
    for (let i = 0; i < x.length; i++) {
      if (planted.includes(i % K)) x[i] = 12 + (i % 7);
      else if (Math.abs(x[i] as number) >= 3.4) x[i] = 0;
    }
    const { CA, SCA, columns } = quantize(tensor(x, { shape: [T, K] }), threshold);
    expect(columns).toEqual(planted);
    const back = Float32Array.from(CA, (q, i) => (q * (SCA[Math.floor(i / K)] as number)) / 127);
    for (const k of planted) for (let t = 0; t < T; t++) x[t * K + k] = 0;
    expect(outside(back, x, 1.5e-2, 0.05)).toBe(0);
  });

  it.each([
    [2048, 512],
    [2048, 1024],
    [4096, 512],
  ])('16: [%i, %i] by rows and by columns', (T, K) => {
    const x = randn([T, K], { seed: T + K, dtype: 'float16' });
    for (const side of [x, transposed(x).contiguous()]) {
      const { CA, SCA } = quantize(side, 0);
      const reference = int8VectorwiseQuant(side);
      expect(SCA).toEqual(reference.SCA.toFloat32Array());
      const want = reference.CA.toInt8Array();
      let [worst, off] = [0, 0];
      for (let i = 0; i < want.length; i++) {
        const difference = Math.abs((CA[i] as number) - (want[i] as number));
        worst = Math.max(worst, difference);
        off += difference === 0 ? 0 : 1;
      }
      expect([worst, off]).toEqual([0, 0]); // bitsandbytes allows ±1 in one element of 500
    }
  });

  it('17: a negative threshold is refused', () => {
    expect(() => int8VectorwiseQuant(randn([2, 4]), -1)).toThrow(ArgumentError);
    expect(() => quantize(randn([2, 4]), -1)).toThrow(/at least 0, got -1/);
  });
});

describe('C: scaling back', () => {
  it('18: int32 [256, 256] with scales of any sign', () => {
    const acc = tensor(
      int8s([256, 256], 3)
        .toFloat32Array()
        .map((q) => q * 997),
      { dtype: 'int32', shape: [256, 256] },
    );
    const [rows, columns] = [randn([256], { seed: 1 }), randn([256], { seed: 2 })];
    const out = int8MmDequant(acc, rows, columns);
    expect([out.shape, out.dtype, F.cast(out, 'float16').shape]).toEqual([[256, 256], 'float32', [256, 256]]);
    const [a, s, c, got] = [acc.toInt32Array(), values(rows), values(columns), values(out)];
    const want = got.map((_, i) => ((a[i] as number) * (s[i >> 8] as number) * (c[i & 255] as number)) / 16129);
    expect(outside(got, want, 0, 1e-7)).toBe(0);
  });

  it.each([
    [64, 64],
    [64, 1024],
    [256, 64],
    [256, 1024],
  ])('19: M %i, N %i, K 128, with and without a float16 bias', (M, N) => {
    const K = 128;
    const [x, w] = [randn([M, K], { seed: M, dtype: 'float16' }), randn([N, K], { seed: N, dtype: 'float16' })];
    const { CB, SCB } = F.quantizeWeight(w);
    for (const bias of [null, randn([N], { seed: 3, dtype: 'float16' })]) {
      const float = values(F.linear(F.cast(x, 'float32'), w, bias));
      const options = { threshold: 0, outliers: 'per-batch' } as const;
      const got = values(F.int8Linear(F.cast(x, 'float32'), CB, SCB, bias, options));
      const want = values(llmInt8Linear(F.cast(x, 'float32'), CB, SCB, { bias }).out);
      const scale = Math.sqrt(K); // the deviation of a column
      const scaled = (list: number[]): number[] => list.map((value) => value / scale);
      expect(outside(scaled(got), scaled(want), 1e-6, 1e-6)).toBe(0); // bitsandbytes asks for 0.015, 0.1
      expect(outside(scaled(got), scaled(float), 0.015, 0.1)).toBeLessThanOrEqual(0.01);
    }
  });

  it('20: [32, 32] · [32, 32] stays close to the float product', () => {
    for (const seed of Array(20).keys()) {
      const x = tensor(
        randn([32, 32], { seed })
          .toFloat32Array()
          .map((value) => value / 2),
        { shape: [32, 32] },
      );
      const w = uniform([32, 32], Math.sqrt(6 / 64), seed + 100);
      const { CB, SCB } = F.quantizeWeight(w);
      const got = F.int8Linear(x, CB, SCB, null, { threshold: 0, outliers: 'per-batch' });
      expect(outside(values(got), values(F.linear(x, w)), 0.025, 0.05)).toBe(0);
    }
  });

  it.each(DTYPES)('21: [10, 20] · [30, 20] in %s, with and without a bias', (dtype) => {
    const { CB, SCB } = F.quantizeWeight(randn([30, 20], { seed: 1 }));
    for (const bias of [null, randn([30], { seed: 2, dtype })]) {
      const x = randn([10, 20], { seed: 3, dtype });
      const out = F.int8Linear(x, CB, SCB, bias, { threshold: 0, outliers: 'per-batch' });
      expect([out.shape, out.dtype]).toEqual([[10, 30], dtype]);
      expect(llmInt8Linear(x, CB, SCB, { bias }).out.dtype).toBe(dtype);
    }
  });

  it('22: other dtypes of accumulators and scales are refused', () => {
    const scales = tensor([1, 1]);
    const acc = tensor([[1, 2]], { dtype: 'int32' });
    expect(() => int8MmDequant(F.cast(acc, 'float32'), tensor([1]), scales)).toThrow(DtypeError);
    expect(() => int8MmDequant(acc, tensor([1]), half([1, 1]))).toThrow('expected scales as float32, got float16');
    expect(() => int8MmDequant(acc, half([1]), scales)).toThrow(DtypeError);
  });
});

/** Uniform in ±bound. */
function uniform(shape: readonly number[], bound: number, seed: number, dtype: Dtype = 'float32'): Tensor {
  const next = uniformGenerator(seed);
  const numbers = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => (2 * next() - 1) * bound);
  return tensor(numbers, { shape, dtype });
}

function layerOf(weight: Tensor, bias: Tensor | null, options: { threshold?: number; hasFp16Weights?: boolean } = {}) {
  const [N, K] = weight.shape as [number, number];
  const layer = new Linear8bitLt(K, N, { bias: bias !== null, hasFp16Weights: false, dtype: 'float32', ...options });
  layer.weight = new Int8Params(weight, { hasFp16Weights: layer.hasFp16Weights });
  if (bias !== null) layer.bias = new Parameter(bias);
  return layer.to('cpu');
}

describe('D: the layer with gradients, x [64, 32], W [48, 32]', () => {
  const configurations = DTYPES.flatMap((dtype) =>
    [0, 6].flatMap((threshold) => [false, true].map((hasFp16Weights) => ({ dtype, threshold, hasFp16Weights }))),
  );
  it.each(configurations)('23 to 26, 28: %j', ({ dtype, threshold, hasFp16Weights }) => {
    for (const seed of Array(20).keys()) {
      const numbers = randn([64, 32], { seed }).toFloat32Array();
      if (threshold === 6) {
        const columns = [seed % 32, (seed + 5) % 32, (seed * 3 + 11) % 32, (seed + 20) % 32];
        for (let i = 0; i < numbers.length; i++) if (columns.includes(i % 32)) numbers[i] = 6;
      }
      const x = tensor(numbers, { shape: [64, 32], dtype });
      const weight = uniform([48, 32], Math.sqrt(6 / 80), seed + 40, dtype);
      const asView = transposed(transposed(weight).contiguous());
      const bias = seed % 3 === 0 ? null : randn([48], { seed: seed + 90, dtype });
      const layer = layerOf(seed % 2 === 0 ? weight : asView, bias, { threshold, hasFp16Weights });
      const out = layer.forward(x);
      expect(out.dtype).toBe(dtype);
      const float = values(F.linear(x, weight, bias));
      expect(outside(values(out), float, 0.01, 0.1)).toBeLessThanOrEqual(dtype === 'float16' ? 0.0175 : 0.021);
      expect(outside(values(out), float, 0.035, 0.2)).toBeLessThanOrEqual(0.001);
      const g = randn([64, 48], { seed: seed + 7, dtype });
      const { gradInput, gradWeight, gradBias } = layer.backward(x, g);
      const floatX = values(F.linear(F.cast(g, 'float32'), transposed(F.cast(weight, 'float32')).contiguous()));
      expect(gradInput.dtype).toBe(dtype);
      expect(outside(values(gradInput), floatX, 0.035, 0.02)).toBeLessThanOrEqual(0.001);
      const sums = new Float64Array(48);
      for (const [i, value] of values(g).entries()) sums[i % 48] = (sums[i % 48] as number) + value;
      if (bias === null) expect(gradBias).toBeNull();
      else expect(outside(values(gradBias), sums, 1e-5, dtype === 'bfloat16' ? 2 ** -8 : 2 ** -10)).toBe(0);
      expect(gradWeight === null).toBe(!hasFp16Weights);
    }
  });

  it('26: dX of a mean squared error is that of the float layer', () => {
    const [x, weight] = [randn([64, 32], { seed: 1 }), uniform([48, 32], 0.27, 2)];
    const target = values(randn([64, 48], { seed: 3 }));
    const g = F.linear(x, weight)
      .toFloat32Array()
      .map((y, i) => (2 * (y - (target[i] as number))) / target.length);
    const { gradInput } = layerOf(weight, null, { threshold: 6 }).backward(x, tensor(g, { shape: [64, 48] }));
    const float = values(F.linear(tensor(g, { shape: [64, 48] }), transposed(weight).contiguous()));
    expect(outside(values(gradInput), float, 0.015, 0.1)).toBe(0);
    const largest = Math.max(...float.map(Math.abs));
    expect(outside(values(gradInput), float, 0.01 * largest, 0)).toBe(0); // bitsandbytes' bound is above all values
  });

  it('27: no rows in, no rows out, zero gradients', () => {
    for (const hasFp16Weights of [false, true]) {
      const layer = layerOf(randn([48, 32]), randn([48]), { threshold: 6, hasFp16Weights });
      expect(layer.forward(empty([0, 32])).shape).toEqual([0, 48]);
      const { gradInput, gradWeight, gradBias } = layer.backward(empty([0, 32]), empty([0, 48]));
      expect([gradInput.shape, new Set(values(gradBias))]).toEqual([[0, 32], new Set([0])]);
      if (hasFp16Weights) expect([gradWeight?.shape, new Set(values(gradWeight))]).toEqual([[48, 32], new Set([0])]);
    }
  });
});

describe('E: the module', () => {
  const layer32 = (options = {}): Linear8bitLt =>
    new Linear8bitLt(32, 96, { hasFp16Weights: false, threshold: 6, ...options });

  it('29: 1024 → 3072 in float16, threshold 6', () => {
    let [above, all] = [0, 0];
    for (const seed of Array(3).keys()) {
      const weight = uniform([3072, 1024], 1 / 32, seed, 'float16');
      const bias = uniform([3072], 1 / 32, seed + 10, 'float16');
      const x = randn([3, 1024], { seed: seed + 20, dtype: 'float16' });
      const layer = layerOf(weight, bias, { threshold: 6 });
      const [got, float] = [values(layer.forward(x)), values(F.linear(x, weight, bias))];
      expect(outside(got, float, 0.03, 0)).toBe(0);
      above += outside(got, float, 0.02, 0) * got.length;
      all += got.length;
      const g = tensor(
        randn([3, 3072], { seed: seed + 30 })
          .toFloat32Array()
          .map((v) => v / (3 * 3072)),
        { shape: [3, 3072] },
      );
      const dX = values(layer.backward(F.cast(x, 'float32'), g).gradInput);
      const floatDX = values(F.linear(g, transposed(F.cast(weight, 'float32')).contiguous()));
      expect(outside(dX, floatDX, 0.01, 0)).toBe(0);
      expect(outside(dX, floatDX, 0.02 * Math.max(...floatDX.map(Math.abs)), 0)).toBe(0);
    }
    expect(above / all).toBeLessThan(1e-3);
  });

  it.each([0, 6])('30: a state dict from before or after the first forward, threshold %i', (threshold) => {
    const [x, g] = [randn([4, 32], { seed: 1 }), randn([4, 96], { seed: 2 })];
    const source = layer32({ threshold }).to('cpu');
    const before = new Map(source.stateDict());
    const [out, dX] = [values(source.forward(x)), values(source.backward(x, g).gradInput)];
    for (const state of [before, source.stateDict()]) {
      const layer = layer32({ threshold }).to('cpu');
      layer.loadStateDict(state);
      expect([values(layer.forward(x)), values(layer.backward(x, g).gradInput)]).toEqual([out, dX]);
    }
  });

  it('31, 37: in a file it takes less than half of float32, and loads with all its state', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'metashard-cases-'));
    try {
      const source = layer32();
      const floatBytes = [...source.stateDict().values()].reduce((sum, { nbytes }) => sum + nbytes, 0);
      const state = source.to('cpu').stateDict();
      await saveSafetensors(join(folder, 'layer.safetensors'), state);
      const saved = await loadSafetensors(join(folder, 'layer.safetensors'));
      expect([...saved.values()].reduce((sum, { nbytes }) => sum + nbytes, 0)).toBeLessThan(floatBytes / 2);
      const layer = layer32();
      layer.loadStateDict(saved);
      expect([values(layer.weight.CB), values(layer.weight.SCB)]).toEqual([
        values(source.weight.CB),
        values(source.weight.SCB),
      ]);
      expect(layer.weight.storage).not.toBe(source.weight.storage);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('32, 33: an 8-bit dict loads before and after the move, strictly', () => {
    // bitsandbytes refuses the first: "Loading a quantized checkpoint into non-quantized Linear8bitLt".
    const state = layer32().to('cpu').stateDict();
    for (const layer of [layer32(), layer32().to('cpu')]) {
      expect(layer.loadStateDict(state, { strict: true })).toEqual({ missing: [], unexpected: [] });
      expect(layer.weight.isQuantized).toBe(true);
    }
    expect(() => new nn.Linear(32, 96).loadStateDict(state)).toThrow(CheckpointError);
  });

  it('35, 36: a layer that shares a weight shares its storage; a clone has its own', () => {
    const layer = layer32().to('cpu');
    const shallow = layer32();
    [shallow.weight, shallow.bias] = [layer.weight, layer.bias];
    expect([shallow.weight.storage, shallow.bias?.storage]).toEqual([layer.weight.storage, layer.bias?.storage]);
    const deep = layer.clone();
    expect([deep.weight.storage === layer.weight.storage, deep.bias?.storage === layer.bias?.storage]).toEqual([
      false,
      false,
    ]);
    for (const copy of [shallow, deep]) {
      expect([values(copy.weight.CB), values(copy.weight.SCB)]).toEqual([
        values(layer.weight.CB),
        values(layer.weight.SCB),
      ]);
      expect([copy.weight.isQuantized, copy.weight.quantizeCalls]).toEqual([true, copy === deep ? 0 : 1]);
    }
  });

  it('38, 39: with a plain (tied) weight there is no SCB, and a dict with one is refused, strict or not', () => {
    const layer = layer32();
    (layer as nn.Linear).weight = new Parameter(randn([96, 32]));
    expect([...layer.stateDict().keys()]).toEqual(['weight', 'bias']);
    const state = layer32().to('cpu').stateDict();
    for (const strict of [true, false]) expect(() => layer.loadStateDict(state, { strict })).toThrow(CheckpointError);
  });

  it('40, 41: weight_format, and a dict without weight', () => {
    const state = layer32().to('cpu').stateDict();
    const load = (format?: number | string): unknown => {
      const given = new Map<string, Tensor | string | number>(state);
      given.delete('weight_format');
      if (format !== undefined) given.set('weight_format', format);
      return layer32().loadStateDict(given);
    };
    for (const format of [0, 'row', undefined]) expect(load(format)).toEqual({ missing: [], unexpected: [] });
    for (const format of [1, 2, 3])
      expect(() => load(format)).toThrow(/expected "row", the only supported weight format/);
    expect(() => load(7)).toThrow(/expected a supported weight format/);
    const layer = layer32().to('cpu');
    const CB = values(layer.weight.CB);
    layer.loadStateDict(new Map([['bias', randn([96])]]), { strict: false });
    expect(values(layer.weight.CB)).toEqual(CB);
  });

  it('42, 43: moves back and forth, twice, with a dtype: int8 once, equal outputs', () => {
    const layer = new Linear8bitLt(32, 128, { hasFp16Weights: false, threshold: 6 });
    const x = randn([4, 32], { seed: 3 });
    const outs = ['cpu:1', 'cpu', 'cpu:1', 'cpu', 'cpu'].map((device) =>
      values(layer.to(device).forward(x.to(device))),
    );
    for (const out of outs) expect(out).toEqual(outs[0]);
    layer.to({ device: 'cpu:1', dtype: 'float16' }).to({ device: 'cpu:1', dtype: 'float16' });
    expect([layer.weight.dtype, layer.weight.quantizeCalls, layer.bias?.dtype]).toEqual(['int8', 1, 'float16']);
  });

  it('44: any order of casting and moving; CB is there before the first forward', () => {
    const x = randn([16, 8, 32], { seed: 4, dtype: 'float16' });
    for (const moves of [['cpu', 'half'], ['half', 'cpu'], ['cpu']]) {
      const layer = layer32();
      for (const move of moves) layer.to(move === 'half' ? { dtype: 'float16' } : { device: 'cpu' });
      expect([layer.weight.dtype, layer.weight.CB?.dtype]).toEqual(['int8', 'int8']);
      const first = values(layer.forward(x));
      for (const _ of Array(100).keys()) expect(values(layer.forward(x))).toEqual(first);
      expect(layer.forward(x).dtype).toBe('float16');
    }
  });

  it.each([2, 3])('45: threshold %i finds outliers in N(0, 1), in train() and in eval()', (threshold) => {
    const x = randn([16, 8, 32], { seed: 5 });
    expect(int8VectorwiseQuant(x, threshold).outlierCols?.numel).toBeGreaterThan(0);
    const layer = layer32({ threshold }).to('cpu');
    const reference = llmInt8Linear(x, layer.weight.CB as Tensor, layer.weight.SCB as Tensor, {
      threshold,
      bias: layer.bias,
    });
    for (const mode of [true, false]) {
      expect(outside(values(layer.train(mode).forward(x)), values(reference.out), 1e-5, 1e-6)).toBe(0);
    }
  });

  it('46: dX of an MLP 32 → 64 → 32', () => {
    const [first, second] = [layerOf(uniform([64, 32], 0.18, 1), null), layerOf(uniform([32, 64], 0.125, 2), null)];
    const float = [uniform([64, 32], 0.18, 1), uniform([32, 64], 0.125, 2)] as const;
    const [x, g] = [randn([16, 32], { seed: 3 }), randn([16, 32], { seed: 4 })];
    const middle = second.backward(first.forward(x), g).gradInput;
    const dX = values(first.backward(x, middle).gradInput);
    const want = values(F.linear(F.linear(g, transposed(float[1]).contiguous()), transposed(float[0]).contiguous()));
    const mean = want.reduce((sum, v) => sum + Math.abs(v), 0) / want.length;
    expect(outside(dX, want, 0.05 * mean, 0)).toBe(0);
    expect(outside(dX, want, 0.01 * mean, 0.1)).toBeLessThanOrEqual(0.005);
  });

  it('47: a float32 bias stays float32, also after a float16 forward; no bias stays none', () => {
    const layer = layer32().to('cpu');
    expect(layer.bias?.dtype).toBe('float32');
    expect(layer.forward(randn([2, 32], { dtype: 'float16' })).dtype).toBe('float16');
    expect(layer.bias?.dtype).toBe('float32'); // bitsandbytes casts it for good
    expect(layer32({ bias: false }).to('cpu').bias).toBeNull();
  });

  it.each(['float16', 'bfloat16'] as const)(
    '48: a frozen 8-bit layer after a trained one, 36 → 84 → 128, in %s',
    (dtype) => {
      const weight = uniform([128, 84], 1 / Math.sqrt(84), 1, dtype);
      const [frozen, w1] = [layerOf(weight, null, { threshold: 6 }), uniform([84, 36], 1 / 6, 2, dtype)];
      const step = (a: Tensor, b: Tensor): Tensor => F.linear(transposed(a).contiguous(), transposed(b).contiguous());
      for (const seed of Array(100).keys()) {
        const x = randn([16, 36], { seed, dtype });
        const g = F.cast(
          tensor(
            randn([16, 128], { seed: seed + 200 })
              .toFloat32Array()
              .map((v) => v / 16),
            { shape: [16, 128] },
          ),
          dtype,
        );
        const { gradInput, gradWeight } = frozen.backward(F.linear(x, w1), g);
        expect(gradWeight).toBeNull();
        const floatInput = F.linear(g, transposed(weight).contiguous());
        const [dW, floatDW] = [values(step(gradInput, x)), values(step(floatInput, x))];
        expect(outside(dW, floatDW, 0.015, 0.05) * dW.length).toBeLessThanOrEqual(1);
        const ones = tensor(new Float32Array(16).fill(1), { shape: [16, 1], dtype });
        expect(outside(values(step(gradInput, ones)), values(step(floatInput, ones)), 0.02, 0.05)).toBe(0);
      }
    },
  );

  it.each([64, 65])('50: an int8 table 128 × %i of ±1 is lossless, for any shape of ids', (H) => {
    const signs = int8s([128, H], 5)
      .toFloat32Array()
      .map((q) => (q < 0 ? -1 : 1));
    const { CB, SCB } = F.quantizeWeight(tensor(signs, { shape: [128, H] }));
    for (const shape of [[10], [10, 10], [10, 10, 10]]) {
      const next = uniformGenerator(6);
      const ids = Int32Array.from({ length: 10 ** shape.length }, () => Math.floor(next() * 128));
      const rows = F.int8Embedding(tensor(ids, { dtype: 'int32' }), CB, SCB).toFloat32Array();
      expect(rows.every((value, i) => value === signs[(ids[Math.floor(i / H)] as number) * H + (i % H)])).toBe(true);
    }
  });

  it('51: and one of U(0, 1) is within 0.05', () => {
    const table = tensor(
      uniform([128, 64], 0.5, 7)
        .toFloat32Array()
        .map((value) => value + 0.5),
      { shape: [128, 64] },
    );
    const { CB, SCB } = F.quantizeWeight(table);
    const ids = tensor([...Array(128).keys()], { dtype: 'int32' });
    expect(outside(values(F.int8Embedding(ids, CB, SCB)), values(table), 0.5 / 127 + 1e-6, 0)).toBe(0);
  });
});

describe('G: vectors, by the cpu', () => {
  it.each(ROWS)('$name', ({ x, threshold, CA, SCA, columns }) => {
    const got = quantize(half(x), threshold);
    expect([[...got.CA].map((q) => q + 0), [...got.SCA], got.columns]).toEqual([CA.flat(), SCA, columns]);
  });

  const [X, W, b] = [half(LAYER.x), half(LAYER.weight), half(LAYER.bias)];

  it('73 to 75: the layer, with and without outliers, and a row alone', () => {
    const layer = layerOf(W, b, { threshold: 6 });
    expect(halfSteps(layer.forward(X), LAYER.outWithOutliers)).toBeLessThanOrEqual(1);
    expect(halfSteps(layerOf(W, b, { threshold: 0 }).forward(X), LAYER.outWithout)).toBeLessThanOrEqual(1);
    const alone = X.narrow(0, 1, 1);
    expect(halfSteps(layer.forward(alone), LAYER.outWithout.slice(1))).toBeLessThanOrEqual(1);
    const { CB, SCB } = layer.weight as { CB: Tensor; SCB: Tensor };
    const options = { threshold: 6, outliers: 'per-row' } as const;
    expect(F.int8Linear(X, CB, SCB, b, options).narrow(0, 1, 1).toArray()).toEqual(
      F.int8Linear(alone, CB, SCB, b, options).toArray(),
    );
  });

  it('76: dX', () => {
    const g = half([
      [1, 0, -1],
      [0.5, 2, 0.25],
    ]);
    const want = [
      [0.62792969, -1.7578125, -0.25, 2.24804688],
      [2.22070312, 1.68359375, -1.74804688, 2.9375],
    ];
    expect(halfSteps(layerOf(W, b, { threshold: 6 }).backward(X, g).gradInput, want)).toBeLessThanOrEqual(1);
  });
});

describe('H: what bitsandbytes does not test', () => {
  const layer = layerOf(randn([48, 32], { seed: 1 }), randn([48], { seed: 2 }), { threshold: 6 });

  it('views of x: as their dense copies, or refused by name, never read wrongly', () => {
    const wide = randn([6, 80], { seed: 3 });
    const columns = wide.narrow(1, 20, 32);
    expect(values(layer.forward(columns))).toEqual(values(layer.forward(columns.contiguous())));
    const deep = transposed(randn([32, 6], { seed: 4 })).unflatten(0, [2, 3]); // [2, 3, 32], last stride 6
    expect(values(layer.forward(deep))).toEqual(values(layer.forward(deep.contiguous())));
    expect(() => callOp('int8_quantize', [transposed(wide)], [6, 0])).toThrow(
      /expected the last dimension of x with stride 1/,
    );
    const { CB, SCB } = layer.weight as { CB: Tensor; SCB: Tensor };
    const flipped = transposed(randn([32, 6], { seed: 4 }));
    expect(values(layer.forward(flipped))).toEqual(values(layer.forward(flipped.contiguous())));
    expect(llmInt8Linear(flipped, CB, SCB).out.toArray()).toEqual(
      llmInt8Linear(flipped.contiguous(), CB, SCB).out.toArray(),
    );
  });

  it('x of 1 and of 4 dimensions', () => {
    const x = randn([2, 1, 3, 32], { seed: 5 });
    expect([layer.forward(x).shape, layer.forward(randn([32])).shape]).toEqual([[2, 1, 3, 48], [48]]);
    expect(values(layer.forward(x))).toEqual(values(layer.forward(x.reshape([6, 32]))));
    expect(() => layer.forward(tensor([1, 2, 3]))).toThrow(ShapeError);
    expect(new Linear8bitLt(1, 5, { hasFp16Weights: false }).to('cpu').forward(randn([3, 1])).shape).toEqual([3, 5]);
  });

  it('bfloat16 results beyond 65504 are no infinity', () => {
    const large = layerOf(tensor(new Float32Array(64).fill(100), { shape: [2, 32], dtype: 'bfloat16' }), null, {
      threshold: 0,
    });
    const out = large.forward(tensor(new Float32Array(32).fill(400), { shape: [1, 32], dtype: 'bfloat16' }));
    for (const value of values(out)) expect(Math.abs(value / 1_280_000 - 1)).toBeLessThan(2 ** -8);
  });

  it('NaN and infinity reach the rows they are in, and no other', () => {
    for (const threshold of [0, 6]) {
      const tested = layerOf(randn([48, 32], { seed: 1 }), null, { threshold });
      const numbers = randn([3, 32], { seed: 6 }).toFloat32Array();
      [numbers[40], numbers[70]] = [Number.NaN, Number.POSITIVE_INFINITY];
      const out = values(tested.forward(tensor(numbers, { shape: [3, 32] })));
      expect(out.slice(0, 48).every(Number.isFinite)).toBe(true);
      expect(out.slice(48, 96).every(Number.isNaN)).toBe(true);
      expect(out.slice(96).some(Number.isFinite)).toBe(false);
    }
  });

  it('K of no multiple of 4, above 1040, at full scale: exact', () => {
    for (const K of [1041, 2047, 4099]) {
      const [CA, CB] = [tensor(new Int8Array(K).fill(127), { dtype: 'int8', shape: [1, K] }), int8s([7, K], K)];
      const want = int8LinearMatmul(CA, CB).toArray();
      expect(matmul(CA, CB).toArray()).toEqual(want);
      const full = tensor(new Int8Array(K).fill(127), { dtype: 'int8', shape: [1, K] });
      expect(matmul(CA, full).toArray()).toEqual([[K * 127 * 127]]);
    }
  });

  it('loading after a forward; train() as eval(); int8 without SCB', () => {
    const x = randn([4, 32], { seed: 7 });
    const target = layerOf(randn([48, 32], { seed: 8 }), randn([48]), { threshold: 6 });
    target.forward(x);
    target.loadStateDict(layer.stateDict());
    expect(values(target.forward(x))).toEqual(values(layer.forward(x)));
    expect(values(target.train().forward(x))).toEqual(values(target.eval().forward(x)));
    const state = new Map([...layer.stateDict()].filter(([key]) => key !== 'SCB'));
    expect(() => target.loadStateDict(state, { strict: false })).toThrow(/expected an int8 weight with its SCB/);
  });

  it('dW is the derivative of the loss that the float weights have', () => {
    const [x, g] = [randn([5, 8], { seed: 9 }), randn([5, 6], { seed: 10 })];
    const weight = randn([6, 8], { seed: 11 });
    const gradient = values(layerOf(weight, null, { hasFp16Weights: true, threshold: 6 }).backward(x, g).gradWeight);
    const loss = (numbers: number[]): number => {
      const [out, grads] = [values(F.linear(x, tensor(numbers, { shape: [6, 8] }))), values(g)];
      return out.reduce((sum, value, i) => sum + value * (grads[i] as number), 0);
    };
    const h = 2 ** -4; // the loss is linear in the weights: any step is exact but for rounding
    const numeric = gradient.map((_, i) => {
      const [up, down] = [1, -1].map((sign) => values(weight).map((w, j) => (i === j ? w + sign * h : w)));
      return (loss(up as number[]) - loss(down as number[])) / (2 * h);
    });
    expect(outside(gradient, numeric, 1e-4, 1e-4)).toBe(0);
  });

  it('a float weight made on the device is quantized by the move to it', () => {
    const made = new Int8Params(randn([6, 8], { device: 'cpu:1' }));
    expect([made.device, made.isQuantized]).toEqual(['cpu:1', false]);
    made.to('cpu:1');
    expect([made.device, made.dtype, made.quantizeCalls]).toEqual(['cpu:1', 'int8', 1]);
    expect(int8WeightQuant(randn([6, 8])).CB.toArray()).toEqual(made.CB?.toArray());
  });
});
