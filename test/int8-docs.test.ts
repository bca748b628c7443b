/**
 * The numbers of docs/int8.md: each is computed here, and found in the page as written. Reference maths and the CPU's
 * kernels.
 */
import { readFileSync } from 'node:fs';
import {
  F,
  int8LinearMatmul,
  int8VectorwiseQuant,
  int8WeightQuant,
  Linear8bitLt,
  llmInt8Linear,
  openCheckpoint,
  randn,
  readTensors,
  type Tensor,
  tensor,
} from 'metashard';
import { describe, expect, it } from 'vitest';
import { relativeError, SHIPPED } from './golden-models.js';

const page = readFileSync(new URL('../docs/int8.md', import.meta.url), 'utf8');
const says = (fact: string): void => expect(page).toContain(fact);
const count = (n: number): string => n.toLocaleString('en-US');
const NaN_ROWS = [
  [Number.NaN, 1, 2, 3],
  [4, 1, 2, 3],
];
const nativeLinear = (
  x: Tensor,
  weight: Tensor,
  threshold: number,
  outliers: 'per-batch' | 'per-row' = 'per-batch',
) => {
  const { CB, SCB } = F.quantizeWeight(weight);
  return F.int8Linear(x, CB, SCB, null, { threshold, outliers });
};

/** How many values of all linear weights differ between own-dtype quantization and bitsandbytes' files. */
async function castingChanges(model: string) {
  const index = await openCheckpoint(`${SHIPPED}${model}`);
  const names = [...index.tensors.keys()].filter((name) =>
    /(query_key_value|dense|dense_h_to_4h|dense_4h_to_h|_proj)\.weight$/.test(name),
  );
  const sums = { CB: 0, CBchanged: 0, SCB: 0, SCBchanged: 0 };
  for (const weight of (await readTensors(index, names)).values()) {
    const [own, cast] = [int8WeightQuant(weight), int8WeightQuant(weight, { castToFloat16First: true })];
    const [a, b] = [own.CB.toInt8Array(), cast.CB.toInt8Array()];
    const [s, t] = [own.SCB.toFloat32Array(), cast.SCB.toFloat32Array()];
    sums.CB += a.length;
    sums.SCB += s.length;
    for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) sums.CBchanged++;
    for (let i = 0; i < s.length; i++) if (s[i] !== t[i]) sums.SCBchanged++;
  }
  return sums;
}

describe('differences from bitsandbytes', () => {
  it('weights quantized from their own dtype', async () => {
    const floats = await castingChanges('stories260K');
    says(`${count(floats.CBchanged)} of ${count(floats.CB)}`);
    says(`${count(floats.SCBchanged)} of ${count(floats.SCB)}`);
    const halves = await castingChanges('bloom-stories');
    expect(halves.SCBchanged).toBe(0);
    says(`${count(halves.CBchanged)} of ${count(halves.CB)}`);
  });

  it('the exact 1/127²', () => says((6.200124e-5 * 127 * 127).toFixed(7)));

  it('activations quantized from their own dtype', () => {
    const x = 5.9980469;
    expect(
      tensor([[x]])
        .to({ dtype: 'float16' })
        .toFloat32Array()[0],
    ).toBe(6);
    says('5.9980469');
    expect(int8VectorwiseQuant(tensor([[x, 1]]), 6).outlierCols?.toArray()).toEqual([]);
    expect(int8VectorwiseQuant(tensor([[x, 1]]).to({ dtype: 'float16' }), 6).outlierCols?.toArray()).toEqual([0]);
  });

  it('no detour of the result through float16', () => {
    const [x, W] = [tensor([[400, 400]]), tensor([[100, 100]])];
    const { CB, SCB } = int8WeightQuant(W);
    const out = llmInt8Linear(x, CB, SCB).out.toArray();
    expect(out).toEqual([[80_000]]);
    expect(nativeLinear(x, W, 0).toArray()).toEqual(out);
    expect(tensor([80_000]).to({ dtype: 'float16' }).toArray()).toEqual([Number.POSITIVE_INFINITY]);
    says('80,000');
  });

  it('int32 sums', () => {
    const K = 2000;
    const row = new Int8Array(K).fill(127);
    row[0] = 1;
    const a = tensor(row, { dtype: 'int8', shape: [1, K] });
    const inFloat32 = row.reduce((sum, value) => Math.fround(sum + value * value), 0);
    const exact = (int8LinearMatmul(a, a).toArray() as number[][])[0]?.[0] as number;
    says(count(exact));
    says(count(inFloat32));
    expect(exact).toBe((K - 1) * 127 * 127 + 1);
  });

  it('any K and any rank', () => {
    const layer = new Linear8bitLt(1, 3, { hasFp16Weights: false, threshold: 6 }).to('cpu');
    for (const shape of [[1], [5, 1], [1, 1, 1, 1], [2, 3, 4, 1]]) {
      const y = layer.forward(randn(shape, { seed: 1 }));
      expect(y.shape).toEqual([...shape.slice(0, -1), 3]);
      expect(y.toFloat32Array().every(Number.isFinite)).toBe(true);
    }
  });

  it('train and eval compute the same', () => {
    const layer = new Linear8bitLt(32, 16, { hasFp16Weights: false, threshold: 6 }).to('cpu');
    const x = randn([4, 32], { seed: 2 });
    const [trained, evaluated] = [layer.train().forward(x), layer.eval().forward(x)];
    expect(trained.toArray()).toEqual(evaluated.toArray());
  });
});

describe('rules', () => {
  it('NaN and infinity reach the output of their row, and of no other', () => {
    const weight = tensor([[1, 0.5, 0.25, 1]]);
    const { CB, SCB } = F.quantizeWeight(weight);
    for (const outliers of ['per-batch', 'per-row'] as const) {
      for (const threshold of [0, 6]) {
        for (const special of [Number.NaN, Number.POSITIVE_INFINITY]) {
          const x = tensor(NaN_ROWS.map((row) => row.map((value) => (Number.isNaN(value) ? special : value))));
          for (const out of [
            llmInt8Linear(x, CB, SCB, { threshold, outliers }).out.toFloat32Array(),
            nativeLinear(x, weight, threshold, outliers).toFloat32Array(),
          ]) {
            expect(Number.isFinite(out[0])).toBe(false);
            expect(Number.isFinite(out[1])).toBe(true);
          }
        }
      }
    }
  });

  it('a row of zeros gives zeros', () => {
    const zero = tensor([[0, 0]]);
    expect(int8WeightQuant(zero).CB.toArray()).toEqual([[0, 0]]);
    expect(nativeLinear(tensor([[1, 2]]), zero, 6).toArray()).toEqual([[0]]);
    expect(nativeLinear(zero, tensor([[1, 2]]), 6).toArray()).toEqual([[0]]);
  });

  it('per-row outliers: a row does not feel its batch mates, to the bit; per-batch it does', () => {
    const x = tensor(
      randn([8, 64], { seed: 3 })
        .toFloat32Array()
        .map((value) => value * 4),
      { shape: [8, 64] },
    );
    const weight = randn([16, 64], { seed: 4 });
    const alone = tensor(x.toFloat32Array().slice(0, 64), { shape: [1, 64] });
    const change = (outliers: 'per-row' | 'per-batch'): number =>
      relativeError(
        nativeLinear(x, weight, 6, outliers).toFloat32Array().slice(0, 16),
        nativeLinear(alone, weight, 6, outliers).toFloat32Array(),
      );
    expect(change('per-row')).toBe(0);
    expect(change('per-batch')).toBeGreaterThan(1e-3);
    const [one, all] = [alone, x].map((rows) => int8VectorwiseQuant(rows, 6, { outliers: 'per-row' }));
    expect(all?.CA.toInt8Array().slice(0, 64)).toEqual(one?.CA.toInt8Array());
    expect(all?.SCA.toFloat32Array()[0]).toBe(one?.SCA.toFloat32Array()[0]);
  });
});
