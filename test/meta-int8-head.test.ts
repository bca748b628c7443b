/**
 * Float activations of Linear8bitLt, and embeddings that share an int8 head: numbers, state dicts, recording. On the
 * cpu backend.
 */
import '@metashard/cpu';
import { F, randn, type Tensor, tensor } from '@metashard/core';
import { type Int8Params, Linear8bitLt, nn, record, replaceLinear } from '@metashard/meta';
import { describe, expect, it } from 'vitest';
import { relativeError } from './golden-models.js';

const ids = tensor([3, 0, 19, 3], { dtype: 'int32' });
const numbers = (t: Tensor): number[] => Array.from(t.toFloat32Array());

/** A table of 20 rows and a head, tied or not, as a language model has them. */
class Ends extends nn.Module {
  readonly embed: nn.Embedding;
  readonly lm_head: nn.Linear;
  constructor(device: 'cpu' | 'meta' = 'cpu', tied = true) {
    super();
    this.embed = new nn.Embedding(20, 64, { device });
    this.lm_head = new nn.Linear(64, 20, { device, bias: false });
    if (tied) this.lm_head.weight = this.embed.weight;
  }
  forward(input: Tensor): Tensor {
    return this.lm_head.forward(this.embed.forward(input));
  }
}

describe('activations', () => {
  const float = new nn.Linear(64, 48);
  const x = randn([40, 64], { seed: 5 });
  const layer = (activations: 'int8' | 'float' | 'bfloat16'): Linear8bitLt =>
    Linear8bitLt.fromLinear(float, { hasFp16Weights: false, threshold: 6, activations });

  it('float: x times the dequantized weights; closer to the float layer than int8 ones', () => {
    const want = float.forward(x).toFloat32Array();
    const own = layer('float');
    const got = own.forward(x).toFloat32Array();
    expect(relativeError(got, F.linear(x, own.dequantize(), own.bias).toFloat32Array())).toBeLessThan(1e-6);
    expect(relativeError(got, want)).toBeLessThan(0.8 * relativeError(layer('int8').forward(x).toFloat32Array(), want));
  });

  it('bfloat16: the same within its rounding, and in a few rows', () => {
    const [own, exact] = [layer('bfloat16'), layer('float')];
    expect(relativeError(numbers(own.forward(x)), numbers(exact.forward(x)))).toBeLessThan(2 ** -8);
    const row = randn([1, 64], { seed: 6 });
    expect(relativeError(numbers(own.forward(row)), numbers(exact.forward(row)))).toBeLessThan(2 ** -8);
  });

  it('defaults to int8, is copied, and takes every dtype', () => {
    expect(new Linear8bitLt(4, 4).activations).toBe('int8');
    expect(layer('float').clone().activations).toBe('float');
    const half = randn([3, 64], { dtype: 'float16' });
    expect(layer('float').forward(half).dtype).toBe('float16');
  });

  it('is recorded as one op over the packed weight', () => {
    const module = new nn.Sequential(new nn.Linear(64, 48, { device: 'meta' }));
    replaceLinear(module, { activations: 'bfloat16' });
    const run = ({ x: input }: Record<string, Tensor>) => ({ y: module.forward(input as Tensor) });
    const { ops, tensors } = record(module, { x: { dims: ['tokens', 64], dtype: 'float32' } }, run);
    expect(ops.map(({ op, attributes }) => [op, attributes])).toEqual([['int8_weight_linear', [1]]]);
    expect(ops[0]?.inputs.slice(1).map((id) => tensors[id]?.name)).toEqual(['0.weight', '0.SCB', '0.bias']);
  });
});

describe('an int8 head tied to embeddings', () => {
  it('gathers from the one table, quantized once', () => {
    const model = new Ends();
    const want = model.embed.forward(ids);
    replaceLinear(model, { head: true });
    const weight = model.embed.weight as Int8Params;
    expect(weight).toBe(model.lm_head.weight);
    const got = model.embed.forward(ids.reshape([2, 2]));
    expect(got.shape).toEqual([2, 2, 64]);
    expect(relativeError(numbers(got), numbers(want))).toBeLessThan(0.01);
    model.forward(ids);
    model.to('cpu:1');
    expect(weight.quantizeCalls).toBe(1);
    const rows = numbers(weight.dequantize());
    expect(numbers(model.embed.forward(ids.to('cpu:1'))).slice(64, 128)).toEqual(rows.slice(0, 64));
  });

  it('state dicts: int8 with scales under both names, loaded by either, onto meta, too', () => {
    const model = new Ends();
    replaceLinear(model, { head: true });
    model.to('cpu');
    const state = model.stateDict();
    expect([...state.keys()].sort()).toEqual(
      ['embed', 'lm_head'].flatMap((name) => [`${name}.SCB`, `${name}.weight`, `${name}.weight_format`]),
    );
    const want = numbers(model.forward(ids));
    for (const name of ['embed', 'lm_head']) {
      const part = new Map([...state].filter(([key]) => key.startsWith(`${name}.`)));
      for (const device of ['cpu', 'meta'] as const) {
        const other = new Ends(device);
        replaceLinear(other, { head: true });
        other.loadStateDict(part, { strict: false });
        expect(numbers(other.forward(ids))).toEqual(want);
        expect((other.embed.weight as Int8Params).quantizeCalls).toBe(0);
      }
    }
    expect(() => new Ends().loadStateDict(state)).toThrow(/embed\.weight: expected float32, got int8/);
  });

  it('records one table for both', () => {
    const model = new Ends('meta');
    replaceLinear(model, { head: true, activations: 'float' });
    const inputs = { ids: { dims: ['tokens'], dtype: 'int32' } } as const;
    const { ops, tensors } = record(model, inputs, ({ ids: input }) => ({ y: model.forward(input as Tensor) }));
    expect(ops.map(({ op }) => op)).toEqual(['int8_embedding', 'int8_weight_linear']);
    const weights = tensors.filter(({ kind }) => kind === 'weight');
    expect(weights.map(({ name, layout }) => [name, layout])).toEqual([
      ['embed.weight', 'packed_int8'],
      ['embed.SCB', 'strided'],
    ]);
  });

  it('float master weights: quantized in each forward', () => {
    const model = new Ends();
    replaceLinear(model, { head: true, hasFp16Weights: true });
    model.forward(ids);
    expect(model.embed.weight.dtype).toBe('float32');
    expect((model.embed.weight as Int8Params).quantizeCalls).toBe(2);
  });
});
