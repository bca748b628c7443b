/**
 * Comparing quantization methods: every method's product against the reference maths, windows and scores, outliers,
 * tables, the choice of a threshold, and the command.
 */
import '@metashard/cpu';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import {
  ArgumentError,
  contextOf,
  dequantizeAbsmax,
  dequantizeZeropoint,
  F,
  int8VectorwiseDequant,
  int8VectorwiseQuant,
  int8WeightQuant,
  llmInt8Linear,
  parseDevice,
  quantizeAbsmax,
  quantizeZeropoint,
  randn,
  type Tensor,
  tensor,
} from '@metashard/core';
import { chooseThreshold, compareQuantization, loadModel, QUANT_METHODS, runCli } from '@metashard/dispatch';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { MethodProducts } from '../packages/dispatch/dist/quant-compare/compared-linear.js';
import {
  outlierColumns,
  quantizeByOneAbsmax,
  throughZeropoint,
} from '../packages/dispatch/dist/quant-compare/fake-quantize.js';
import { OutlierWatch } from '../packages/dispatch/dist/quant-compare/outlier-watch.js';
import { type QuantMethod, quantMethods } from '../packages/dispatch/dist/quant-compare/quant-methods.js';
import { formatOutliers, formatQualityTable } from '../packages/dispatch/dist/quant-compare/quant-report.js';
import { scoreWindow, summarize } from '../packages/dispatch/dist/quant-compare/score.js';
import { TensorArena } from '../packages/dispatch/dist/quant-compare/tensor-arena.js';
import { makeWindows, readTextFile } from '../packages/dispatch/dist/quant-compare/text-windows.js';
import { MODELS, readGolden, relativeError, rowsOf, SHIPPED } from './golden-models.js';

const STORIES = `${SHIPPED}stories260K`;
const LLAMA = readGolden('llama');
const IDS = rowsOf(LLAMA, 'input_ids');

const cpu = contextOf(parseDevice('cpu'));
const [weightsArena, stepArena] = [new TensorArena(cpu), new TensorArena(cpu)];
afterAll(() => {
  weightsArena.dispose();
  stepArena.dispose();
});

/** x [T, K] with `planted` columns of outliers. */
function activations(T: number, K: number, seed: number, planted: readonly number[] = []): Tensor {
  const values = randn([T, K], { seed }).toFloat32Array();
  for (const column of planted) for (let t = 0; t < T; t += 2) values[t * K + column] = 7 + t;
  return tensor(values, { shape: [T, K] });
}

describe('values through 8 bits', () => {
  const odd = [
    [0, -0, 0],
    [1e-40, -5e-41, 2e-41],
    [Number.NaN, 1, 2],
    [Number.POSITIVE_INFINITY, 1, -1],
    [3, 3, 3],
    [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5],
    [1e6, 1e6 + 0.0625, 1e6 + 0.125],
  ];
  const samples = [...odd, ...[1, 2, 3, 4].map((seed) => [...randn([333], { seed }).toFloat32Array()])];

  it('with one absmax: as quantizeAbsmax', () => {
    for (const sample of samples) {
      const { q, absmax } = quantizeByOneAbsmax(Float32Array.from(sample));
      const reference = quantizeAbsmax(tensor(sample));
      expect([...q]).toEqual(reference.q.toArray());
      expect(absmax === 0 ? 1 : 127 / absmax).toBe(reference.scale);
    }
  });

  it('with a zero-point: as quantizeZeropoint and back, for the tensor and by row', () => {
    const viaReference = (values: Float32Array): Float32Array => {
      const { q, scale, zeroPoint } = quantizeZeropoint(tensor(values));
      return dequantizeZeropoint(q, scale, zeroPoint).toFloat32Array();
    };
    for (const sample of samples) {
      const values = Float32Array.from(sample);
      expect(throughZeropoint(values, { rowLength: values.length })).toEqual(viaReference(values));
    }
    const rows = randn([5, 40], { seed: 9 }).toFloat32Array();
    const expected = [0, 1, 2, 3, 4].flatMap((t) => [...viaReference(rows.slice(t * 40, t * 40 + 40))]);
    expect([...throughZeropoint(rows, { rowLength: 40 })]).toEqual(expected);
  });

  it('keeps outlier columns as they are and out of the range', () => {
    const values = activations(6, 20, 5, [3, 11]).toFloat32Array();
    const kept = outlierColumns(values, 20, 6);
    expect([...kept.keys()].filter((k) => kept[k] === 1)).toEqual([3, 11]);
    const out = throughZeropoint(values, { rowLength: 20, threshold: 6, keep: { columns: 20, kept } });
    for (let t = 0; t < 6; t++) {
      const inside = [...values.subarray(t * 20, t * 20 + 20)].filter((value) => Math.abs(value) < 6);
      const step = (Math.max(...inside) - Math.min(...inside)) / 254;
      for (let k = 0; k < 20; k++) {
        const error = Math.abs((out[t * 20 + k] as number) - (values[t * 20 + k] as number));
        expect(error).toBeLessThanOrEqual(kept[k] === 1 ? 0 : step * 1.001);
      }
    }
    expect([...outlierColumns(Float32Array.of(Number.NaN, 1), 2, 6)]).toEqual([1, 0]);
    const nothingElse = { rowLength: 2, threshold: 6, keep: { columns: 2, kept: Uint8Array.of(1, 1) } };
    expect([...throughZeropoint(Float32Array.of(8, -9), nothingElse)]).toEqual([8, -9]);
  });
});

describe('each method computes what the reference maths says', () => {
  const [T, K, N] = [9, 70, 33];

  /** Values through the reference quantization of a scheme and back. */
  function through(values: Tensor, scheme: QuantMethod['weights']): Float64Array {
    const rows = values.toArray() as number[][];
    const parts = scheme === 'float' || scheme.scales === 'tensor' ? [values] : rows.map((row) => tensor([row]));
    const back = parts.flatMap((part): number[] => {
      if (scheme === 'float') return [...part.toFloat32Array()];
      if (scheme.range === 'zeropoint') {
        const { q, scale, zeroPoint } = quantizeZeropoint(part);
        return [...dequantizeZeropoint(q, scale, zeroPoint).toFloat32Array()];
      }
      if (scheme.scales === 'tensor') {
        const { q, scale } = quantizeAbsmax(part);
        return [...dequantizeAbsmax(q, scale).toFloat32Array()];
      }
      const { CA, SCA } = int8VectorwiseQuant(part);
      return [...int8VectorwiseDequant(CA, SCA).toFloat32Array()];
    });
    return Float64Array.from(back);
  }

  /** x and weight after quantization, outlier columns as they are; their product in float64. */
  function expected(x: Tensor, weight: Tensor, bias: Tensor | null, method: QuantMethod): Float64Array {
    const w = through(weight, method.weights);
    const own = x.toFloat32Array();
    const isOutlier = (value: number): boolean => method.threshold > 0 && !(Math.abs(value) < method.threshold);
    const columns = new Set([...own.keys()].filter((i) => isOutlier(own[i] as number)).map((i) => i % K));
    const leaves = (i: number): boolean =>
      method.outliers === 'per-row' ? isOutlier(own[i] as number) : columns.has(i % K);
    // Scales count everything but the outliers themselves; a zero in their place widens no range here.
    const inside = (own as Float32Array).map((value) => (isOutlier(value) ? 0 : value));
    const rounded = through(tensor(inside, { shape: [T, K] }), method.activations);
    const a = rounded.map((value, i) => (leaves(i) ? (own[i] as number) : value));
    const shift = bias?.toFloat32Array();
    return Float64Array.from({ length: T * N }, (_, i) => {
      const [t, n] = [Math.floor(i / N), i % N];
      let sum = shift?.[n] ?? 0;
      for (let k = 0; k < K; k++) sum += (a[t * K + k] as number) * (w[n * K + k] as number);
      return sum;
    });
  }
  const methods = quantMethods(undefined, [6, 1.5]);
  it.each(methods.map((method) => [method.label, method] as const))('%s', (_, method) => {
    for (const [dtype, planted, seed] of [
      ['float32', [], 1],
      ['float16', [2, 64], 2],
      ['bfloat16', [0], 3],
    ] as const) {
      const weight = randn([N, K], { seed: seed + 10, dtype });
      const bias = seed === 2 ? null : randn([N], { seed: seed + 20, dtype });
      const x = activations(T, K, seed, planted);
      const product = new MethodProducts(method, weightsArena, stepArena).of(weight, bias);
      const got = stepArena.run(() => product(x)).toFloat32Array();
      expect(relativeError(got, expected(x, weight, bias, method))).toBeLessThan(1e-6);
      stepArena.reset();
      weightsArena.reset();
    }
  });

  it('LLM.int8() is llmInt8Linear, in both ways to choose outliers', () => {
    for (const method of quantMethods(['llm-int8', 'llm-int8-per-row'], [6, 2]).slice(1)) {
      const [x, weight, bias] = [activations(T, K, 7, [5]), randn([N, K], { seed: 8 }), randn([N], { seed: 9 })];
      const { CB, SCB } = int8WeightQuant(weight);
      const { threshold, outliers } = method;
      const reference = llmInt8Linear(x, CB, SCB, { threshold, bias, outliers });
      const products = new MethodProducts(method, weightsArena, stepArena);
      const got = stepArena.run(() => products.of(weight, bias)(x)).toFloat32Array();
      expect(relativeError(got, reference.out.toFloat32Array())).toBeLessThan(3e-7);
      expect([products.forwards, products.outlierColumns]).toEqual([1, reference.outlierCols?.numel]);
      stepArena.reset();
      weightsArena.reset();
    }
  });

  it('linears that get the same tensor share its quantization', () => {
    const products = new MethodProducts(quantMethods(['llm-int8'])[1] as QuantMethod, weightsArena, stepArena);
    const [q, k] = [4, 6].map((N) => products.of(randn([N, 8], { seed: N }), null)) as [
      (x: Tensor) => Tensor,
      (x: Tensor) => Tensor,
    ];
    const [x, other] = [activations(3, 8, 1, [2]), activations(3, 8, 2)];
    stepArena.run(() => [q(x), k(x), q(other)]);
    expect([products.forwards, products.outlierColumns]).toEqual([3, 2]);
  });
});

describe('quantMethods', () => {
  it('are in the order of the table, float first, one per threshold', () => {
    expect(quantMethods(['llm-int8', 'absmax'], [6, 3]).map(({ label }) => label)).toEqual([
      'float',
      'absmax',
      'LLM.int8(), threshold 6',
      'LLM.int8(), threshold 3',
    ]);
    expect(new Set(quantMethods().map(({ name }) => name))).toEqual(new Set(QUANT_METHODS));
  });
  it('say what is wrong', () => {
    expect(() => quantMethods(['absmx'])).toThrow(ArgumentError);
    expect(() => quantMethods(['absmx'])).toThrow(/got "absmx"/);
    expect(() => quantMethods(['llm-int8'], [0])).toThrow('thresholds: expected numbers above 0, got 0');
  });
});

describe('TensorArena', () => {
  it('gives memory out once between resets, takes the results of ops, and reuses it', () => {
    const arena = new TensorArena(cpu);
    const a = arena.from(Float32Array.of(1, 2), { dims: [2], dtype: 'float32' });
    const b = arena.from(Float32Array.of(10, 20), { dims: [2], dtype: 'float32' });
    const sum = arena.run(() => F.add(a, b));
    expect([a.toArray(), b.toArray(), sum.toArray()]).toEqual([
      [1, 2],
      [10, 20],
      [11, 22],
    ]);
    expect(sum.storage?.buffer).toBe(a.storage?.buffer);
    expect(F.add(a, b).storage?.buffer).not.toBe(a.storage?.buffer);
    const large = arena.empty({ dims: [70 * 2 ** 20], dtype: 'int8' });
    expect(large.storage?.buffer).not.toBe(a.storage?.buffer);
    arena.reset();
    const again = arena.empty({ dims: [2], dtype: 'float32' });
    expect([again.storage?.buffer, again.offset]).toEqual([a.storage?.buffer, a.offset]);
    expect(arena.empty({ dims: [70 * 2 ** 20], dtype: 'int8' }).storage?.buffer).toBe(large.storage?.buffer);
    arena.dispose();
    expect(() => a.toArray()).toThrow();
  });
});

describe('windows of a text', () => {
  // Words are tokens 1, 2, …; 0 begins a text.
  const words = ['a', 'dog', 'ran', 'home', '.'];
  const tokenizer = { encode: (text: string) => [0, ...text.split(' ').map((word) => 1 + words.indexOf(word))] };
  const cut = (text: Parameters<typeof makeWindows>[0], options = {}, most: number | null = null) =>
    makeWindows(text, tokenizer as unknown as Parameters<typeof makeWindows>[1], most, options);

  it('one text: consecutive, without the rest; documents: one each, cut at the end', () => {
    expect(cut('a dog ran home . a dog', { windowLength: 3 }).map(({ ids }) => ids)).toEqual([
      [0, 1, 2],
      [3, 4, 5],
    ]);
    expect(cut('a dog ran home .', { windowLength: 2, skip: 1, windows: 1 })).toEqual([
      { ids: [2, 3], lastWord: null },
    ]);
    expect(cut('a dog')).toEqual([{ ids: [0, 1, 2], lastWord: null }]);
    expect(cut(['a dog', 'dog ran home'], { windowLength: 3 }).map(({ ids }) => ids)).toEqual([
      [0, 1, 2],
      [0, 2, 3],
    ]);
    expect(cut([[4, 5, 6], [7]], { windowLength: 2 }).map(({ ids }) => ids)).toEqual([[4, 5]]);
  });

  it('last words: the tokens that the text without it does not have; long ones lose their beginning', () => {
    const lastWords = { lastWords: true };
    expect(cut(['a dog ran home\n'], lastWords)).toEqual([{ ids: [0, 1, 2, 3, 4], lastWord: 4 }]);
    expect(cut(['a dog ran home'], { ...lastWords, windowLength: 3 })).toEqual([{ ids: [2, 3, 4], lastWord: 2 }]);
    expect(cut(['home'], lastWords)).toEqual([{ ids: [0, 4], lastWord: null }]);
  });

  it('say what is wrong', () => {
    expect(() => cut('a dog', { windowLength: 9 }, 8)).toThrow("expected at most the model's 8 tokens, got 9");
    expect(() => cut('a dog', { windows: 0 })).toThrow('windows: expected a whole number of at least 1, got 0');
    expect(() => cut(['a dog'], { skip: 1 })).toThrow('expected at least two tokens after 1 windows');
    expect(() => makeWindows('a', null, null, {})).toThrow('expected token ids, as the model has no tokenizer.json');
  });
});

describe('scores', () => {
  const logits = tensor([
    [0, Math.log(3), 0],
    [Math.log(2), 0, 0],
    [0, 0, Math.log(8)],
  ]);
  it('are the likelihoods, guesses and last word of a window', () => {
    const score = scoreWindow(logits, { ids: [0, 1, 2], lastWord: 1 });
    expect(score).toMatchObject({ tokens: 2, hits: 1, lastWord: false });
    expect([...score.guesses]).toEqual([1, 0]);
    expect(score.nll).toBeCloseTo(-Math.log(3 / 5) - Math.log(1 / 4), 6);
    expect(scoreWindow(logits, { ids: [0, 1, 0], lastWord: 1 }).lastWord).toBe(true);
    expect(scoreWindow(logits, { ids: [2, 0, 0], lastWord: 2 }).lastWord).toBe(true);
  });

  it('sum up with the standard error of the difference', () => {
    const score = (nll: number, tokens: number, hits: number, lastWord: boolean | null) => {
      return { nll, tokens, hits, lastWord, guesses: new Int32Array(tokens).fill(hits) };
    };
    const float = [score(10, 10, 4, true), score(20, 10, 5, null)];
    const other = [score(11, 10, 4, false), score(22, 10, 6, null)];
    const quality = summarize(other, float);
    expect(quality).toMatchObject({ loss: 1.65, nextTokenAccuracy: 0.5, agreement: 0.5, lastWordAccuracy: 0 });
    expect(quality.difference).toBeCloseTo(0.15, 12);
    // Residuals ±0.5 over 20 tokens: √(2 · 0.5² · 2 / 1) / 20.
    expect(quality.standardError).toBeCloseTo(0.05, 12);
    expect(summarize(float.slice(0, 1), float).standardError).toBeNaN();
    expect(summarize(float, float)).toMatchObject({ difference: 0, agreement: 1, lastWordAccuracy: 1 });
  });
});

describe('OutlierWatch', () => {
  it('counts rows, windows and magnitudes of columns; linears with one input are one entry', () => {
    const watch = new OutlierWatch(6);
    const first = tensor([
      [1, 6, 0, -9],
      [1, 5.5, 0, 7],
    ]);
    const second = tensor([
      [2, 1, 0, -8],
      [0, 0, 0, 0],
    ]);
    for (const x of [first, second]) for (const path of ['q', 'k']) watch.observe(path, x);
    watch.observe('o', tensor([[0, 3]]));
    expect(watch.report()).toEqual([
      {
        linears: ['q', 'k'],
        inFeatures: 4,
        columnsPerWindow: 1.5,
        rows: 3 / 4,
        values: 4 / 16,
        largest: 9,
        largestOther: 5.5,
        columns: [
          { column: 3, rows: 3 / 4, windows: 1, largest: 9 },
          { column: 1, rows: 1 / 4, windows: 1 / 2, largest: 6 },
        ],
      },
      expect.objectContaining({ linears: ['o'], columns: [], largest: 3, rows: 0 }),
    ]);
    expect(formatOutliers(6, watch.report())).toMatchInlineSnapshot(`
      "outliers from 6 on, in 1 of 2 inputs of linears
      ┌──────────┬─────────────────────────────────────────────┬──────────────────┬────────┬─────────┬────────┐
      │ input of │ columns: rows, windows, largest             │ columns a window │   rows │ largest │ others │
      ├──────────┼─────────────────────────────────────────────┼──────────────────┼────────┼─────────┼────────┤
      │ q, k     │ 3: 75.0 %, 100.0 %, 9.0; 1: 25.0 %, 50.0 %, │         1.5 of 4 │ 75.0 % │     9.0 │    5.5 │
      │          │ 6.0                                         │                  │        │         │        │
      └──────────┴─────────────────────────────────────────────┴──────────────────┴────────┴─────────┴────────┘
      none in 1 inputs, whose largest value is 3.0"
    `);
  });
});

describe('tables', () => {
  it('have a row per method', () => {
    const result = (label: string, fields = {}) => ({
      method: label,
      label,
      threshold: 0,
      loss: 3,
      perplexity: 23.9412,
      difference: 0,
      standardError: 0,
      nextTokenAccuracy: 0.415,
      agreement: 1,
      lastWordAccuracy: 0.327,
      outlierColumns: 0,
      seconds: 1,
      ...fields,
    });
    const results = [
      result('float'),
      result('absmax', {
        perplexity: 50.59,
        difference: 0.748,
        standardError: 0.02,
        agreement: 0.57,
        lastWordAccuracy: null,
      }),
      result('LLM.int8(), threshold 6', {
        threshold: 6,
        outlierColumns: 20.04,
        difference: -0.001,
        standardError: Number.NaN,
      }),
    ];
    expect(formatQualityTable(results)).toMatchInlineSnapshot(`
      "┌─────────────────────────┬────────────┬──────────────────┬────────────┬──────────┬───────────┬─────────────────┐
      │ method                  │ perplexity │    against float │ next token │ as float │ last word │ outlier columns │
      ├─────────────────────────┼────────────┼──────────────────┼────────────┼──────────┼───────────┼─────────────────┤
      │ float                   │      23.94 │                  │     41.5 % │          │    32.7 % │                 │
      │ absmax                  │      50.59 │ +111.28 % ± 4.23 │     41.5 % │   57.0 % │         – │                 │
      │ LLM.int8(), threshold 6 │      23.94 │          -0.10 % │     41.5 % │  100.0 % │    32.7 % │            20.0 │
      └─────────────────────────┴────────────┴──────────────────┴────────────┴──────────┴───────────┴─────────────────┘"
    `);
  });
});

describe('compareQuantization', () => {
  it('float and LLM.int8() are what loaded models compute; every run gives the same', async () => {
    const options = {
      windows: 2,
      windowLength: 24,
      methods: ['llm-int8', 'llm-int8-per-row', 'absmax'],
      thresholds: [6],
    };
    const text = [
      'Once upon a time there was a little dog. He ran home and slept.',
      'Lily had a red ball and a blue cat.',
    ];
    const first = await compareQuantization(STORIES, text, options);
    const again = await compareQuantization(STORIES, text, options);
    const timeless = ({ results, ...facts }: typeof first) => [facts, results.map((one) => ({ ...one, seconds: 0 }))];
    expect(timeless(again)).toEqual(timeless(first));
    expect(first).toMatchObject({ windows: 2, linears: 35, skipped: [{ module: 'lm_head' }], outliers: null });
    for (const [index, load] of [
      [0, {}],
      [2, { loadIn8bit: true }],
      [3, { loadIn8bit: true, outliers: 'per-row' }],
    ] as const) {
      const model = await loadModel(STORIES, { devices: ['cpu:0'], maxSeqLen: 64, ...load });
      const ids = text.map((one) => model.tokenizer?.encode(one).slice(0, 24) as number[]);
      let [nll, tokens] = [0, 0];
      for (const one of ids) {
        const loss = await model.loss(one);
        nll += loss.loss * loss.tokens;
        tokens += loss.tokens;
      }
      await model.dispose();
      expect(first.tokens).toBe(tokens);
      expect(first.results[index]?.loss).toBeCloseTo(nll / tokens, 5);
    }
    const [float, absmax, int8] = first.results;
    expect(float).toMatchObject({ method: 'float', difference: 0, agreement: 1, outlierColumns: 0 });
    expect(Math.abs(absmax?.difference as number)).toBeGreaterThan(Math.abs(int8?.difference as number));
  });

  it('takes token ids of a model without tokenizer, and a checkpoint saved in 8 bits', async () => {
    for (const folder of [`${MODELS}llama`, `${MODELS}bloom`, `${MODELS}stories260K-bnb8`]) {
      const { results, outliers } = await compareQuantization(folder, IDS, { outliersFrom: 6, windows: 2 });
      expect(results.map(({ loss }) => Number.isFinite(loss))).toEqual(results.map(() => true));
      expect(outliers?.inputs.flatMap(({ linears }) => linears).length).toBeGreaterThan(4);
    }
    // The weights are multiples of SCB / 127 already: quantizing them again changes nothing.
    const saved = await compareQuantization(`${MODELS}stories260K-bnb8`, IDS, {
      methods: ['int8-weights'],
      windows: 2,
    });
    expect(saved.results[1]?.difference).toBeCloseTo(0, 5);
  });

  it('names what it cannot do, and ends when told', async () => {
    await expect(compareQuantization(`${MODELS}llama`, 'a text')).rejects.toThrow('no tokenizer.json');
    await expect(compareQuantization(`${MODELS}llama`, [[1, 999_999]])).rejects.toThrow(/999999/);
    const signal = AbortSignal.abort(new Error('enough'));
    await expect(compareQuantization(`${MODELS}llama`, IDS, { signal })).rejects.toThrow('enough');
  });
});

describe('chooseThreshold', () => {
  it('takes the largest threshold within the bound, and says what it measured', async () => {
    const options = { windows: 2, candidates: [2, 6, 4] };
    const easy = await chooseThreshold(`${MODELS}llama`, IDS, { ...options, bound: 10 });
    expect([easy.threshold, easy.measured.map(({ threshold }) => threshold)]).toEqual([6, [6]]);
    const hard = await chooseThreshold(`${MODELS}llama`, IDS, { ...options, bound: 0, outliers: 'per-row' });
    const within = hard.measured.find(({ difference }) => difference <= 0);
    expect(hard.threshold).toBe(within?.threshold ?? null);
    expect(hard.measured.map(({ threshold }) => threshold)).toEqual([6, 4, 2].slice(0, hard.measured.length));
    expect(hard.summary).toMatch(/^(no threshold|threshold \d) stays within 0 nats of float \(measured 6: [+-]/);
    await expect(chooseThreshold(`${MODELS}llama`, IDS, { candidates: [] })).rejects.toThrow('at least one threshold');
    await expect(chooseThreshold(`${MODELS}llama`, IDS, { bound: -1 })).rejects.toThrow('nats from 0 on, got -1');
  });
});

describe('metashard quant-compare', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'metashard-quality-'));
    writeFileSync(join(folder, 'words.jsonl'), '{"text": "The cat sat on the mat"}\n\n"Tom has a dog"\n');
    writeFileSync(join(folder, 'stories.json'), '["One day a cat ran.", {"text": "A dog slept."}]');
    writeFileSync(join(folder, 'plain.txt'), 'Once upon a time there was a cat.');
    writeFileSync(join(folder, 'broken.json'), '[1]');
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  async function run(...args: string[]): Promise<{ code: number; out: string; err: string }> {
    const [stdout, stderr] = [new PassThrough({ highWaterMark: 2 ** 24 }), new PassThrough({ highWaterMark: 2 ** 24 })];
    const code = await runCli(['quant-compare', ...args], { stdin: Readable.from([]), stdout, stderr, env: {} });
    return { code, out: String(stdout.read() ?? ''), err: String(stderr.read() ?? '') };
  }
  const text = (name: string): string[] => ['--text', join(folder, name)];

  it('reads texts of three kinds', async () => {
    expect(await readTextFile(join(folder, 'words.jsonl'))).toEqual({
      text: ['The cat sat on the mat', 'Tom has a dog'],
      lastWords: true,
    });
    expect((await readTextFile(join(folder, 'stories.json'))).text).toEqual(['One day a cat ran.', 'A dog slept.']);
    expect((await readTextFile(join(folder, 'plain.txt'))).text).toBe('Once upon a time there was a cat.');
  });

  it('prints a table, or JSON with the outlier report', async () => {
    const table = await run(STORIES, ...text('words.jsonl'), '--methods', 'absmax,llm-int8', '--thresholds', '6');
    expect([table.code, table.err]).toEqual([0, '']);
    expect(table.out).toMatch(/│ LLM\.int8\(\), threshold 6 │/);
    expect(table.out).toMatch(/last word/);
    const json = await run(
      STORIES,
      ...text('stories.json'),
      '--methods',
      'int8-weights',
      '--outlier-report',
      '4',
      '--json',
    );
    const report = JSON.parse(json.out);
    expect(report.results.map(({ method }: { method: string }) => method)).toEqual(['float', 'int8-weights']);
    expect([report.outliers.threshold, report.windows]).toEqual([4, 2]);
  });

  it('chooses a threshold', async () => {
    const { code, out } = await run(STORIES, ...text('plain.txt'), '--choose-threshold', '--bound', '1');
    expect([code, out.trim().split('\n').at(-1)]).toEqual([
      0,
      expect.stringMatching(/^threshold 6 stays within 1 nats of float \(measured 6: [+-]0\.\d{4}\)$/),
    ]);
  });

  it.each([
    [['--text', 'no/such.txt'], 'error: --text: expected a readable file'],
    [['broken.json'], 'expected a text or an object with text, got 1'],
    [['plain.txt', '--methods', 'absmx'], 'got "absmx"'],
    [['plain.txt', '--windows', 'many'], 'error: --windows: expected a number, got "many"'],
    [['plain.txt', '--thresholds', '6,,3'], 'error: --thresholds: expected a number, got ""'],
    [['plain.txt', '--window-length', '1'], 'expected a whole number of at least 2, got 1'],
    [[], "required option '--text <file>' not specified"],
  ])('exits with 2: %j', async (args, message) => {
    const [first, ...others] = args;
    const given = first === undefined || first.startsWith('--') ? args : [...text(first), ...others];
    const { code, err } = await run(STORIES, ...given);
    expect([code, err]).toEqual([2, expect.stringContaining(message)]);
  });
});
