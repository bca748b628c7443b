/**
 * Int8Params and Linear8bitLt: the state machine of bitsandbytes' layer, done right where it is stricter or wrong. Runs
 * on the cpu backend. The layer's numbers are meta-int8-forward.test.ts.
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
