/**
 * Int8Params and Linear8bitLt: the state machine of bitsandbytes' layer, done right where it is stricter or wrong, and the
 * layer's numbers. Runs on the cpu backend.
 */
import '@metashard/cpu';
import {
  CheckpointError,
  empty,
  native,
  OPS,
  randn,
  StateError,
  type Tensor,
  Tensor as TensorClass,
  tensor,
} from '@metashard/core';
import {
  Int8Params,
  initEmptyWeights,
  Linear8bitLt,
  nn,
  Parameter,
  replaceLinear,
  setModuleTensorToDevice,
} from '@metashard/meta';
import { describe, expect, it } from 'vitest';

const quantizeOps = (): number => native().opCalls(OPS.quantize_weight.code);
const int8Layer = (options = {}): Linear8bitLt =>
  new Linear8bitLt(32, 96, { hasFp16Weights: false, threshold: 6, ...options });
const values = (t: Tensor | null | undefined): number[] => Array.from((t as Tensor).toFloat32Array());
const worst = (a: Tensor, b: Tensor): number => {
  const [x, y] = [a.toFloat32Array(), b.toFloat32Array()];
  return x.reduce((most, value, i) => Math.max(most, Math.abs(value - (y[i] as number))), 0);
};

describe('quantization happens once, on a real device', () => {
  it('not when it is built, not on meta; at the first move; never again', () => {
    const layer = int8Layer();
    expect([layer.weight.CB, layer.weight.SCB, layer.weight.dtype]).toEqual([null, null, 'float32']);
    const before = quantizeOps();
    layer.to('cpu');
    const { CB, SCB } = layer.weight;
    expect([CB?.dtype, CB?.shape, SCB?.dtype, SCB?.shape]).toEqual(['int8', [96, 32], 'float32', [96]]);
    expect(layer.weight.dtype).toBe('int8');
    layer.to('cpu').to('cpu:1').to({ device: 'cpu:0', dtype: 'float16' });
    layer.forward(randn([4, 32]));
    layer.weight.to('cpu:1').to('cpu');
    expect([quantizeOps() - before, layer.weight.quantizeCalls]).toEqual([1, 1]);
    expect(values(layer.weight.CB)).toEqual(values(CB));
    expect(values(layer.weight.SCB)).toEqual(values(SCB));
  });

  it('the walk-through: load, move twice, forward, move back: one native quantization', () => {
    const float = new nn.Sequential(
      new nn.Linear(64, 64, { dtype: 'float16' }),
      new nn.Linear(64, 64, { dtype: 'float16' }),
    );
    const twin = new nn.Sequential(
      new Linear8bitLt(64, 64, { hasFp16Weights: false, dtype: 'float16' }),
      new Linear8bitLt(64, 64, { hasFp16Weights: false, dtype: 'float16' }),
    );
    const before = quantizeOps();
    twin.loadStateDict(float.stateDict());
    expect(quantizeOps() - before).toBe(0);
    twin.to('cpu').to('cpu');
    twin.forward(randn([3, 64], { dtype: 'float16' }));
    twin.to('cpu:1').to('cpu');
    expect(quantizeOps() - before).toBe(2);
    expect((twin.at(0) as Linear8bitLt).weight.quantizeCalls).toBe(1);
  });

  it('a forward on float weights quantizes, once', () => {
    const layer = int8Layer();
    const first = layer.forward(randn([2, 32]));
    expect(layer.weight.quantizeCalls).toBe(1);
    expect(values(layer.forward(randn([2, 32])))).toEqual(values(first));
    expect(values(layer.to('cpu').forward(randn([2, 32])))).toEqual(values(first));
    expect(layer.weight.quantizeCalls).toBe(1);
  });

  it('CB and SCB are the weights of the formula; the scales are the rows absmax', () => {
    const weight = randn([5, 7], { seed: 4 });
    const params = new Int8Params(weight).to('cpu');
    const rows = weight.toArray() as number[][];
    const absmax = rows.map((row) => Math.max(...row.map(Math.abs)));
    expect(values(params.SCB)).toEqual(absmax);
    const dequantized = params.dequantize().toArray() as number[][];
    for (const [n, row] of rows.entries()) {
      for (const [k, w] of row.entries()) {
        expect(Math.abs((dequantized[n]?.[k] as number) - w)).toBeLessThanOrEqual(
          ((absmax[n] as number) / 254) * 1.0001,
        );
      }
    }
  });

  it('a dtype alone quantizes nothing and leaves int8 as it is; casting int8 is refused', () => {
    const layer = int8Layer().to({ dtype: 'float16' });
    expect([layer.weight.dtype, layer.weight.CB]).toEqual(['float16', null]);
    layer.to('cpu').to({ dtype: 'bfloat16' });
    expect([layer.weight.dtype, layer.bias?.dtype]).toEqual(['int8', 'bfloat16']);
    expect(() => layer.weight.to({ dtype: 'float16' })).toThrow(StateError);
  });

  it('the order of casting and moving is free: int8 in the end, float16 in gives float16 out', () => {
    const x = randn([16, 8, 32], { dtype: 'float16' });
    for (const moves of [
      [{ device: 'cpu' }, { dtype: 'float16' }],
      [{ dtype: 'float16' }, { device: 'cpu' }],
      [{ device: 'cpu' }],
    ] as const) {
      const layer = int8Layer();
      for (const move of moves) layer.to(move);
      expect(layer.weight.dtype).toBe('int8');
      const out = layer.forward(x);
      expect([out.dtype, out.shape]).toEqual(['float16', [16, 8, 96]]);
      expect(values(layer.forward(x))).toEqual(values(out));
    }
  });

  it('outputs on one device stay the same over moves', () => {
    const layer = int8Layer({ bias: false });
    const x = randn([4, 32], { seed: 9 });
    const outs = ['cpu', 'cpu:1', 'cpu', 'cpu:1'].map((device) => values(layer.to(device).forward(x.to(device))));
    for (const out of outs) expect(out).toEqual(outs[0]);
  });
});

describe('meta', () => {
  it('building, moving and running there quantizes nothing', () => {
    const layer = initEmptyWeights(() => int8Layer());
    expect([layer.weight.isMeta, layer.weight instanceof Int8Params, layer.weight.CB]).toEqual([true, true, null]);
    layer.to('meta');
    expect(layer.forward(empty([3, 32], { device: 'meta' })).shape).toEqual([3, 96]);
    expect(layer.weight.quantizeCalls).toBe(0);
    expect(() => layer.to('cpu')).toThrow(StateError);
    expect(() => layer.weight.quantize()).toThrow(/a weight on meta has no values/);
  });

  it('a quantized layer stays int8 there', () => {
    const layer = int8Layer().to('cpu').to('meta');
    expect([layer.weight.dtype, layer.weight.CB?.isMeta, layer.weight.SCB?.isMeta]).toEqual(['int8', true, true]);
    expect([...layer.stateDict().keys()]).toEqual(['weight', 'bias', 'SCB', 'weight_format']);
  });

  it('setModuleTensorToDevice materializes, quantizes once, keeps the class', () => {
    const layer = initEmptyWeights(() => int8Layer());
    const weight = layer.weight;
    const value = randn([96, 32], { seed: 2 });
    setModuleTensorToDevice(layer, 'weight', 'cpu', { value });
    setModuleTensorToDevice(layer, 'weight', 'cpu:1');
    setModuleTensorToDevice(layer, 'weight', 'cpu');
    expect(layer.weight).toBe(weight);
    expect([weight.quantizeCalls, weight.dtype, weight.device]).toEqual([1, 'int8', 'cpu:0']);
    setModuleTensorToDevice(layer, 'bias', 'cpu', { value: new Array(96).fill(0) });
    const reference = Linear8bitLt.fromLinear(new nn.Linear(32, 96), { hasFp16Weights: false });
    reference.loadStateDict(
      new Map([
        ['weight', value],
        ['bias', randn([96])],
      ]),
    );
    expect(values(weight.CB)).toEqual(values(reference.to('cpu').weight.CB));
  });

  it('takes int8 values with scb only', () => {
    const source = int8Layer().to('cpu').weight;
    const [CB, SCB] = [source.CB as Tensor, source.SCB as Tensor];
    const layer = initEmptyWeights(() => int8Layer());
    expect(() => setModuleTensorToDevice(layer, 'weight', 'cpu', { value: CB })).toThrow(CheckpointError);
    setModuleTensorToDevice(layer, 'weight', 'cpu:1', { value: CB, scb: SCB });
    expect([layer.weight.quantizeCalls, layer.weight.device, values(layer.weight.SCB)]).toEqual([
      0,
      'cpu:1',
      values(SCB),
    ]);
  });
});

describe('state dicts', () => {
  it('hold weight, bias, SCB and weight_format once quantized; less than half the bytes', () => {
    const layer = int8Layer();
    const bytes = (): number => [...layer.stateDict().values()].reduce((sum, t) => sum + t.nbytes, 0);
    expect([...layer.stateDict().keys()]).toEqual(['weight', 'bias']);
    const floatBytes = bytes();
    layer.to('cpu');
    const state = layer.stateDict();
    expect([...state].map(([name, t]) => [name, t.dtype, t.shape])).toEqual([
      ['weight', 'int8', [96, 32]],
      ['bias', 'float32', [96]],
      ['SCB', 'float32', [96]],
      ['weight_format', 'uint8', []],
    ]);
    expect(state.get('weight_format')?.item()).toBe(0);
    expect(bytes()).toBeLessThan(floatBytes / 2);
  });

  it('load before a move, after a move, after a forward, and onto meta, without quantizing', () => {
    const x = randn([4, 32], { seed: 5 });
    const source = int8Layer().to('cpu');
    const states = [source.stateDict()];
    const want = values(source.forward(x));
    states.push(source.stateDict());
    const targets = [int8Layer(), int8Layer().to('cpu'), initEmptyWeights(() => int8Layer()), int8Layer()];
    targets[3]?.forward(x);
    for (const state of states) {
      for (const layer of targets) {
        const calls = layer.weight.quantizeCalls;
        expect(layer.loadStateDict(state)).toEqual({ missing: [], unexpected: [] });
        expect(values(layer.to('cpu').forward(x))).toEqual(want);
        expect(layer.weight.quantizeCalls).toBe(calls);
      }
    }
  });

  it('float weights loaded into a quantized layer are quantized at once', () => {
    const layer = int8Layer().to('cpu');
    const weight = randn([96, 32], { seed: 8, dtype: 'bfloat16' });
    layer.loadStateDict(
      new Map([
        ['weight', weight],
        ['bias', randn([96])],
      ]),
    );
    expect([layer.weight.dtype, layer.weight.quantizeCalls]).toEqual(['int8', 2]);
    expect(values(layer.weight.CB)).toEqual(values(new Int8Params(weight).to('cpu').CB));
  });

  it('int8 without SCB, SCB beside floats, and 8-bit files for float layers are refused by name', () => {
    const state = int8Layer().to('cpu').stateDict();
    const without = (name: string): Map<string, Tensor> => new Map([...state].filter(([key]) => key !== name));
    expect(() => int8Layer().loadStateDict(without('SCB'), { strict: false })).toThrow(
      /weight: expected an int8 weight with its SCB, got an int8 weight alone/,
    );
    const mixed = new Map([...state, ['weight', randn([96, 32])]] as [string, Tensor][]);
    expect(() => int8Layer().loadStateDict(mixed)).toThrow(/SCB: expected an int8 weight beside it/);
    expect(() => new nn.Linear(32, 96).loadStateDict(state, { strict: false })).toThrow(
      /weight: expected float32, got int8/,
    );
    expect(() => new Linear8bitLt(32, 96).loadStateDict(state)).toThrow(/hasFp16Weights: true/);
    const wrong = new Map([...state, ['SCB', tensor([1, 2])]] as [string, Tensor][]);
    expect(() => int8Layer().loadStateDict(wrong)).toThrow(/expected CB and SCB of shapes/);
  });

  it('weight_format: rows in any spelling or none; everything else is refused', () => {
    const state = int8Layer().to('cpu').stateDict();
    const withFormat = (format: Tensor | string | number | null): Map<string, Tensor | string | number> => {
      const map = new Map<string, Tensor | string | number>(state);
      if (format === null) map.delete('weight_format');
      else map.set('weight_format', format);
      return map;
    };
    const code = (value: number): Tensor => tensor([value], { dtype: 'uint8', shape: [] });
    for (const format of [code(0), 0, 'row', null]) {
      expect(int8Layer().loadStateDict(withFormat(format)).unexpected).toEqual([]);
    }
    for (const format of [code(1), 2, 'col_ampere']) {
      expect(() => int8Layer().loadStateDict(withFormat(format))).toThrow(
        /expected "row", the only supported weight format/,
      );
    }
    for (const format of [code(7), -1, 'rows']) {
      expect(() => int8Layer().loadStateDict(withFormat(format))).toThrow(/expected a supported weight format/);
    }
  });

  it('a dict without weight loads what it has', () => {
    const layer = int8Layer().to('cpu');
    const result = layer.loadStateDict(new Map([['bias', randn([96])]]), { strict: false });
    expect(result).toEqual({ missing: ['weight'], unexpected: [] });
  });

  it('a layer whose weight became a plain parameter is a float layer', () => {
    const layer = int8Layer();
    (layer as nn.Linear).weight = new Parameter(randn([96, 32]));
    expect([...layer.stateDict().keys()]).toEqual(['weight', 'bias']);
    const x = randn([2, 32], { seed: 3 });
    const float = new nn.Linear(32, 96);
    float.loadStateDict(layer.stateDict());
    expect(values(layer.forward(x))).toEqual(values(float.forward(x)));
    const state = int8Layer().to('cpu').stateDict();
    expect(() => layer.loadStateDict(state, { strict: false })).toThrow(/got a plain Parameter/);
  });

  it('a shared weight is quantized once and loaded by either name', () => {
    const net = new nn.Sequential(new nn.Linear(8, 8, { bias: false }), new nn.Linear(8, 8, { bias: false }));
    (net.at(1) as nn.Linear).weight = (net.at(0) as nn.Linear).weight;
    expect(replaceLinear(net).replaced).toEqual(['0', '1']);
    const [a, b] = [net.at(0) as Linear8bitLt, net.at(1) as Linear8bitLt];
    net.to('cpu');
    expect(b.weight).toBe(a.weight);
    expect(a.weight.quantizeCalls).toBe(1);
    const state = new Map([...net.stateDict()].filter(([name]) => name.startsWith('1.')));
    expect(net.loadStateDict(state)).toEqual({ missing: [], unexpected: [] });
  });
});

describe('copies', () => {
  it('are deep: own storage, equal weights, scales and options', () => {
    for (const layer of [int8Layer({ outliers: 'per-row' }).to('cpu'), int8Layer(), new Linear8bitLt(32, 96)]) {
      const copy = layer.clone();
      const x = randn([3, 32]);
      expect(copy.weight).not.toBe(layer.weight);
      expect(copy.weight.storage).not.toBe(layer.weight.storage);
      expect([copy.weight.dtype, copy.threshold, copy.outliers, copy.hasFp16Weights]).toEqual([
        layer.weight.dtype,
        layer.threshold,
        layer.outliers,
        layer.hasFp16Weights,
      ]);
      if (layer.weight.SCB !== null) {
        expect(values(copy.weight.CB)).toEqual(values(layer.weight.CB));
        expect(values(copy.weight.SCB)).toEqual(values(layer.weight.SCB));
        expect(copy.weight.quantizeCalls).toBe(0);
      }
      expect(values(copy.forward(x))).toEqual(values(layer.forward(x)));
    }
  });
});

describe('float master weights', () => {
  it('stay float and are quantized in each forward', () => {
    const layer = new Linear8bitLt(32, 96, { threshold: 6 }).to('cpu');
    expect([layer.weight.dtype, layer.weight.CB]).toEqual(['float32', null]);
    const x = randn([4, 32]);
    const twin = int8Layer();
    twin.loadStateDict(layer.stateDict());
    expect(values(layer.forward(x))).toEqual(values(twin.forward(x)));
    layer.forward(x);
    expect([layer.weight.quantizeCalls, layer.weight.dtype]).toEqual([2, 'float32']);
    expect([...layer.stateDict().keys()]).toEqual(['weight', 'bias']);
    expect(values(layer.eval().forward(x))).toEqual(values(layer.train().forward(x)));
  });
});

describe('forward and backward', () => {
  it('a worked example, with its integers: an outlier column, a row alone, outliers by row', () => {
    const layer = new Linear8bitLt(4, 3, { hasFp16Weights: false, threshold: 6, dtype: 'float16' });
    const weight = [
      [0.5, -1, 0.25, 2],
      [1, 1, -1, 1],
      [-0.125, 0.75, 0.5, -0.25],
    ];
    layer.loadStateDict(
      new Map([
        ['weight', tensor(weight)],
        ['bias', tensor([0.1, -0.2, 0.3])],
      ]),
    );
    layer.to('cpu');
    expect(layer.weight.CB?.toArray()).toEqual([
      [32, -64, 16, 127],
      [127, 127, -127, 127],
      [-21, 127, 85, -42],
    ]);
    expect(layer.weight.SCB?.toArray()).toEqual([2, 1, 0.75]);
    const x = [
      [1, -2, 8, 0.5],
      [0.25, 1.5, -0.5, 3],
    ];
    const out = layer.forward(tensor(x, { dtype: 'float16' })).toArray() as number[][];
    const want = [
      [5.6484375, -8.6875, 2.56640625],
      [4.58203125, 5.0703125, 0.40673828],
    ];
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
    const layer = int8Layer().to('cpu');
    layer.forward(randn([2, 32], { dtype: 'float16' }));
    expect(layer.bias?.dtype).toBe('float32');
    expect(int8Layer({ bias: false }).to('cpu').bias).toBeNull();
  });
});

describe('Int8Params by itself', () => {
  it('needs a matrix, floats or int8 with SCB', () => {
    expect(() => new Int8Params(tensor([1, 2]))).toThrow(/expected a matrix/);
    expect(() => new Int8Params(tensor([[1]], { dtype: 'int32' }))).toThrow(/got int32/);
    const CB = tensor([[127, -5]], { dtype: 'int8' });
    expect(() => new Int8Params(CB)).toThrow(CheckpointError);
    const made = new Int8Params(CB, { SCB: tensor([2]) });
    expect([made.isQuantized, made.quantizeCalls]).toEqual([true, 0]);
    expect(values(made.dequantize())[0]).toBe(2);
    expect(() => {
      made.data = CB;
    }).toThrow(CheckpointError);
    made.data = tensor([[1, 2]]);
    expect([made.dtype, made.CB]).toEqual(['float32', null]);
    expect(made).toBeInstanceOf(TensorClass);
  });

  it('is found under its own class by initEmptyWeights', () => {
    const made = initEmptyWeights(() => new Int8Params(tensor([[127, -5]], { dtype: 'int8' }), { SCB: tensor([2]) }));
    expect([made.isMeta, made.dtype, made.SCB?.isMeta]).toEqual([true, 'int8', true]);
  });
});
