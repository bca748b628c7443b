/**
 * Recording: what a Program holds, what it refuses, and that it computes what the modules compute (op by op on the cpu
 * backend).
 */
import '@metashard/cpu';
import { empty, F, type Program, randn, StateError, type Tensor, tensor } from '@metashard/core';
import {
  buildModel,
  type CausalLM,
  ConstantTensor,
  eagerContext,
  Int8Params,
  liveRanges,
  nn,
  record,
  recordCausalLM,
  replaceLinear,
  shareCommonOps,
} from '@metashard/meta';
import { describe, expect, it } from 'vitest';
import { runProgram } from './run-program.js';

const META = { device: 'meta' } as const;
const X = { x: { dims: ['tokens', 4], dtype: 'float32' } } as const;
type Net = nn.Module & { forward(x: Tensor): Tensor };
const recordOf = (net: Net): Program => record(net, X, ({ x }) => ({ y: net.forward(x as Tensor) }));

class Mlp extends nn.Module {
  up = new nn.Linear(4, 6, META);
  act = new nn.GELU();
  down = new nn.Linear(6, 4, { bias: false, ...META });
  forward(x: Tensor): Tensor {
    return F.add(x, this.down.forward(this.act.forward(this.up.forward(x))));
  }
}

describe('what a program holds', () => {
  it('ops in order with their modules, weights by name, absent inputs as -1', () => {
    const program = recordOf(new Mlp());
    expect(program.ops.map(({ op, module }) => [op, module])).toEqual([
      ['linear', 'up'],
      ['activation', 'act'],
      ['linear', 'down'],
      ['add', ''],
    ]);
    const weights = program.tensors.filter(({ kind }) => kind === 'weight');
    expect(weights.map(({ name, dims, dtype }) => [name, dims, dtype])).toEqual([
      ['up.weight', [6, 4], 'float32'],
      ['up.bias', [6], 'float32'],
      ['down.weight', [4, 6], 'float32'],
    ]);
    expect(program.ops[2]?.inputs[2]).toBe(-1);
    expect(program.tensors[program.outputs.y as number]).toMatchObject({ kind: 'activation', dims: ['tokens', 4] });
    expect(structuredClone(program)).toEqual(JSON.parse(JSON.stringify(program)));
  });

  it('views by base, offset and strides; constants with data; persistent buffers by name; caches once', () => {
    class Net extends nn.Module {
      constructor() {
        super();
        this.registerBuffer('scale', empty([3], META));
        this.registerBuffer('slopes', new ConstantTensor(Float32Array.of(1, 0.5)), { persistent: false });
      }
      forward(x: Tensor): Tensor {
        return F.activation(x.unflatten(1, [2, 2]).select(2, 1), 'relu');
      }
    }
    const net = new Net();
    const [scale, slopes] = net.buffers() as [Tensor, Tensor];
    const program = record(net, X, ({ x }, recording) => {
      const cache = recording.cache('net.k', [8, 2], 'float16');
      expect(recording.cache('net.k', [8, 2], 'float16')).toBe(cache);
      recording.tap('slopes', slopes);
      recording.tap('constant', F.clone(F.cast(recording.cache('net.k', [8, 2], 'float16'), 'float32')));
      recording.tap('scale', F.activation(scale, 'relu'));
      expect(recording.pathOf(net)).toBe('');
      return { y: net.forward(x as Tensor) };
    });
    const kinds = program.tensors.filter(({ kind }) => kind !== 'activation' && kind !== 'input');
    expect(kinds).toEqual([
      { kind: 'cache', name: 'net.k', dims: [8, 2], dtype: 'float16', layout: 'strided' },
      { kind: 'constant', data: [1, 0.5], dims: [2], dtype: 'float32', layout: 'strided' },
      { kind: 'weight', name: 'scale', dims: [3], dtype: 'float32', layout: 'strided' },
      { kind: 'view', of: 0, offset: 1, strides: [4, 2], dims: ['tokens', 2], dtype: 'float32', layout: 'strided' },
    ]);
  });

  it('real small tensors become constants, large ones are refused', () => {
    const small = tensor([[1, 2, 3, 4]]);
    const program = record(new Mlp(), X, ({ x }) => ({
      y: F.mul(F.selectRows(x as Tensor, tensor([0], { dtype: 'int32' })), small),
    }));
    const constants = program.tensors.filter(({ kind }) => kind === 'constant');
    expect(constants.map(({ data, dtype }) => [data, dtype])).toEqual([
      [[0], 'int32'],
      [[1, 2, 3, 4], 'float32'],
    ]);
    const large = empty([2 ** 17, 4], { device: 'cpu' });
    expect(() =>
      record(new Mlp(), { x: { dims: [2 ** 17, 4], dtype: 'float32' } }, ({ x }) => ({ y: F.add(x as Tensor, large) })),
    ).toThrow(/constants up to 1 MiB/);
  });

  it('8-bit weights as packed int8 and scales, whatever state they are in', () => {
    const names = [new Mlp(), realMlp(), realMlp().to('cpu')].map((net) => {
      if (net.up.weight.constructor !== Int8Params) replaceLinear(net);
      const weights = recordOf(net).tensors.filter(({ kind }) => kind === 'weight');
      return weights.map(({ name, dtype, layout }) => `${name} ${dtype} ${layout}`);
    });
    expect(names[0]).toEqual([
      'up.weight int8 packed_int8',
      'up.SCB float32 strided',
      'up.bias float32 strided',
      'down.weight int8 packed_int8',
      'down.SCB float32 strided',
    ]);
    expect(names[1]).toEqual(names[0]);
    expect(names[2]).toEqual(names[0]);
  });
});

/** An Mlp with values. */
function realMlp(): Mlp {
  const net = new Mlp();
  net.up = new nn.Linear(4, 6);
  net.down = new nn.Linear(6, 4, { bias: false });
  return net;
}

describe('what recording refuses', () => {
  it('meta tensors of nowhere, a recording within one; and restores forward', () => {
    const net = new Mlp();
    const stray = empty([1, 4], META);
    expect(() => record(net, X, () => ({ y: net.forward(stray) }))).toThrow(StateError);
    expect(() => record(net, X, () => ({ y: recordOf(net) as never }))).toThrow(/no recording in progress/);
    expect(net.modules().every((module) => !Object.hasOwn(module, 'forward'))).toBe(true);
    expect(recordOf(net).ops).toHaveLength(4);
    expect(() => record(net, X, (_, recording) => ({ y: recording.pathOf(new Mlp()) as never }))).toThrow(
      /another one/,
    );
  });

  it('outside a recording meta ops give shapes only', () => {
    const out = new Mlp().forward(empty([7, 4], META));
    expect([out.isMeta, out.shape]).toEqual([true, [7, 4]]);
  });
});

describe('passes', () => {
  it('equal ops and views are computed once; attention never', () => {
    class Twice extends nn.Module {
      forward(x: Tensor): Tensor {
        const part = (): Tensor => F.relu(F.silu(x).narrow(1, 0, 2));
        return F.add(F.cast(part(), 'float16'), F.cast(part(), 'bfloat16'));
      }
    }
    const program = recordOf(new Twice());
    expect(program.ops.map(({ op }) => op).filter((op) => op !== 'cast')).toEqual([
      'activation',
      'activation',
      'activation',
      'activation',
      'add',
    ]);
    const shared = shareCommonOps(program);
    expect(shared.ops.map(({ op }) => op).filter((op) => op !== 'cast')).toEqual(['activation', 'activation', 'add']);
    expect(shared.tensors.filter(({ kind }) => kind === 'view')).toHaveLength(1);
    expect(shareCommonOps(shared)).toEqual(shared);
  });

  it('q, k and v of a llama quantize their input once; rotary tables are made once', () => {
    const model = story('llama');
    replaceLinear(model);
    const counts = new Map<string, number>();
    for (const { op } of recordCausalLM(model, CACHE).ops) counts.set(op, (counts.get(op) ?? 0) + 1);
    expect(Object.fromEntries(counts)).toMatchObject({
      int8_quantize: 2 * 4,
      int8_linear: 2 * 7,
      rope_table: 1,
      attention: 2,
    });
  });

  it('live ranges: bases count for their views, outputs live to the end', () => {
    const program = recordOf(new Mlp());
    const ranges = liveRanges(program);
    const of = (op: number): unknown => ranges.get(program.ops[op]?.outputs[0] as number);
    expect(ranges.get(0)).toEqual({ first: 0, last: 3 });
    expect([of(0), of(1), of(2), of(3)]).toEqual([
      { first: 0, last: 1 },
      { first: 1, last: 2 },
      { first: 2, last: 3 },
      { first: 3, last: 4 },
    ]);
    expect(liveRanges(program, { outputs: [] }).get(program.outputs.y as number)).toEqual({ first: 3, last: 3 });
    expect(() => liveRanges(program, { outputs: ['z'] })).toThrow(/expected an output/);
  });
});

const CACHE = { cacheBlocks: 6, blocksPerSequence: 3 };
const SIZES = { vocab_size: 40, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4 };

/** A small model with random values. */
function story(kind: 'bloom' | 'llama' | 'mistral'): CausalLM {
  const heads =
    kind === 'bloom' ? { n_layer: 2, n_head: 4 } : { num_key_value_heads: 2, intermediate_size: 48, sliding_window: 5 };
  const { model } = buildModel({ model_type: kind, ...SIZES, ...heads });
  const state = [...model.stateDict()].map(([name, t], seed): [string, Tensor] => [name, randn(t.shape, { seed })]);
  model.loadStateDict(new Map(state));
  return model;
}

const int32 = (values: number[], shape = [values.length]): Tensor => tensor(values, { dtype: 'int32', shape });

/** Inputs of a step that prefills two sequences of 7 and 20 tokens. */
function prefill(): { lengths: number[]; inputs: Record<string, Tensor> } {
  const lengths = [7, 20];
  const ids = Array.from({ length: 27 }, (_, i) => (i * 7 + 3) % 40);
  return {
    lengths,
    inputs: {
      input_ids: int32(ids),
      positions: int32(lengths.flatMap((length) => [...Array(length).keys()])),
      query_starts: int32([0, 7]),
      query_lengths: int32(lengths),
      context_lengths: int32(lengths),
      block_tables: int32([4, 0, 0, 5, 1, 0], [2, 3]),
      output_rows: int32(ids.map((_, row) => row)),
    },
  };
}

describe.each(['bloom', 'llama', 'mistral'] as const)('a recorded %s computes what the modules do', (kind) => {
  for (const int8 of [false, true]) {
    it(int8 ? 'in int8' : 'in float', () => {
      const model = story(kind);
      if (int8) {
        replaceLinear(model);
        model.to('cpu');
      }
      const { lengths, inputs } = prefill();
      const context = eagerContext(model, lengths);
      const outputRows = inputs.output_rows as Tensor;
      const eager = model.forward({ inputIds: inputs.input_ids as Tensor, outputRows }, context);
      const program = recordCausalLM(model, CACHE);
      const outputs = runProgram(program, model, inputs);
      expect(outputs.logits?.shape).toEqual(eager.shape);
      const scale = Math.max(...eager.toFloat32Array().map(Math.abs));
      const worst = (a: Tensor, b: Tensor): number => {
        const other = b.toFloat32Array();
        return (
          a.toFloat32Array().reduce((most, value, i) => Math.max(most, Math.abs(value - (other[i] as number))), 0) /
          scale
        );
      };
      expect(worst(outputs.logits as Tensor, eager)).toBeLessThan(1e-5);
      for (const [name, value] of context.taps) expect(worst(outputs[name] as Tensor, value)).toBeLessThan(1e-5);
      expect([...context.taps.keys()]).toEqual(['hidden_states.0', 'hidden_states.1', 'hidden_states.2']);
    });
  }

  it('decoding over the cache gives the logits of a full forward', () => {
    const model = story(kind);
    const { inputs } = prefill();
    const program = recordCausalLM(model, CACHE);
    const caches = new Map<string, Tensor>();
    runProgram(program, model, inputs, caches);
    const step = {
      ...inputs,
      input_ids: int32([11, 12]),
      positions: int32([7, 20]),
      query_starts: int32([0, 1]),
      query_lengths: int32([1, 1]),
      context_lengths: int32([8, 21]),
      output_rows: int32([0, 1]),
    };
    const decoded = runProgram(program, model, step, caches).logits?.toFloat32Array() as Float32Array;
    const ids = [...(inputs.input_ids as Tensor).toInt32Array()];
    const whole = int32([...ids.slice(0, 7), 11, ...ids.slice(7), 12]);
    const full = model
      .forward({ inputIds: whole, outputRows: int32([7, 28]) }, eagerContext(model, [8, 21]))
      .toFloat32Array();
    const scale = Math.max(...full.map(Math.abs));
    for (const [i, value] of decoded.entries())
      expect(Math.abs(value - (full[i] as number)) / scale).toBeLessThan(1e-5);
    expect([...caches.keys()].sort()[0]).toMatch(/\.0\.self_att(n|ention)\.k$/);
  });
});
