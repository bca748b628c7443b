/** Modules: the tree, names, state dicts, moves. Everything but the last group runs on meta. */
import '@metashard/cpu';
import { CheckpointError, empty, StateError, type Tensor, tensor } from '@metashard/core';
import { findTiedParameters, ModuleList, nn, Parameter, setModuleTensorToDevice } from '@metashard/meta';
import { describe, expect, it } from 'vitest';

const META = { device: 'meta' } as const;

class Block extends nn.Module {
  norm = new nn.LayerNorm(4, META);
  proj = new nn.Linear(4, 4, META);
  forward(x: Tensor): Tensor {
    return this.proj.forward(this.norm.forward(x));
  }
}

class Net extends nn.Module {
  wte = new nn.Embedding(10, 4, META);
  h = new ModuleList([new Block(), new Block()]);
  head = new nn.Linear(4, 10, { bias: false, ...META });
  constructor({ tied = true } = {}) {
    super();
    if (tied) this.head.weight = this.wte.weight;
    this.registerBuffer('scale', empty([1], META));
    this.registerBuffer('cache', tensor([1, 2]), { persistent: false });
  }
  forward(x: Tensor): Tensor {
    return x;
  }
}

const names = (entries: readonly [string, unknown][]): string[] => entries.map(([name]) => name);

describe('the tree', () => {
  it('names modules, parameters and buffers in the order they were set', () => {
    const net = new Net();
    expect(names(net.namedModules())).toEqual([
      '',
      'wte',
      'h',
      'h.0',
      'h.0.norm',
      'h.0.proj',
      'h.1',
      'h.1.norm',
      'h.1.proj',
      'head',
    ]);
    expect(names(net.namedParameters())).toEqual([
      'wte.weight',
      ...['h.0', 'h.1'].flatMap((b) => [`${b}.norm.weight`, `${b}.norm.bias`, `${b}.proj.weight`, `${b}.proj.bias`]),
    ]);
    expect(names(net.namedBuffers())).toEqual(['scale', 'cache']);
    expect(names(net.namedBuffers({ persistentOnly: true }))).toEqual(['scale']);
    expect(names(net.namedChildren())).toEqual(['wte', 'h', 'head']);
  });

  it('lists a shared parameter once, and under every name when asked', () => {
    const net = new Net();
    expect(names(net.namedParameters())).not.toContain('head.weight');
    expect(names(net.namedParameters({ everyName: true }))).toContain('head.weight');
    expect(findTiedParameters(net)).toEqual([['head.weight', 'wte.weight']]);
    expect(findTiedParameters(new Net({ tied: false }))).toEqual([]);
  });

  it('a shared module is listed once, its parameters are tied', () => {
    const shared = new nn.Linear(2, 2, META);
    const net = new nn.Sequential(shared, shared);
    expect(names(net.namedModules())).toEqual(['', '0']);
    expect(findTiedParameters(net)).toEqual([
      ['0.bias', '1.bias'],
      ['0.weight', '1.weight'],
    ]);
  });

  it('finds by path, with the nearest name in the error', () => {
    const net = new Net();
    expect(net.getModule('')).toBe(net);
    expect(net.getModule('h.1.proj')).toBeInstanceOf(nn.Linear);
    expect(net.getParameter('head.weight')).toBe(net.wte.weight);
    expect(() => net.getModule('h.1.prj')).toThrow(/expected a module of the model, got "h.1.prj"/);
    expect(() => net.getParameter('h.1.proj.weigth')).toThrow(
      expect.objectContaining({ hint: 'did you mean h.1.proj.weight?' }),
    );
  });

  it('registering is assigning; names that are methods or have dots are refused', () => {
    const net = new Net();
    const extra = new Parameter(empty([3], META));
    net.registerParameter('extra', extra);
    net.registerParameter('none', null);
    expect(net.getParameter('extra')).toBe(extra);
    expect(names(net.namedParameters())).not.toContain('none');
    for (const name of ['', 'a.b', 'forward', 'stateDict']) {
      expect(() => net.registerParameter(name, extra)).toThrow(/expected a free name/);
    }
  });

  it('Sequential takes modules or an array of them, and nothing else', () => {
    const [a, b] = [new nn.Linear(2, 3, META), new nn.ReLU()];
    expect(names(new nn.Sequential(a, b).namedChildren())).toEqual(['0', '1']);
    expect(names(new nn.Sequential([a, b]).namedChildren())).toEqual(['0', '1']);
    expect(() => new nn.Sequential(a, 3 as unknown as nn.Module)).toThrow(/expected modules, got number at 1/);
  });

  it('train and eval reach every module', () => {
    const net = new Net().eval();
    expect(net.modules().some((module) => module.training)).toBe(false);
    expect(
      net
        .train()
        .modules()
        .every((module) => module.training),
    ).toBe(true);
  });
});

describe('state dicts', () => {
  const values = (): Map<string, Tensor> =>
    new Map(
      [...new Net().stateDict()].map(([name, t]) => [name, tensor(new Float32Array(t.numel), { shape: t.shape })]),
    );

  it('hold parameters under every name and persistent buffers, not the others', () => {
    const state = new Net().stateDict();
    expect([...state.keys()].sort()).toEqual(
      [...names(new Net().namedParameters({ everyName: true })), 'scale'].sort(),
    );
  });

  it('load onto meta as they lie, cast to the parameter', () => {
    const net = new Net();
    expect(net.loadStateDict(values())).toEqual({ missing: [], unexpected: [] });
    expect(net.parameters().every((p) => p.device === 'cpu:0' && p.dtype === 'float32')).toBe(true);
    expect(net.head.weight).toBe(net.wte.weight);
    expect(net.getModule('h.0')).toBeInstanceOf(Block);
  });

  it('a tied weight is satisfied by either name', () => {
    for (const left of ['head.weight', 'wte.weight']) {
      const map = values();
      map.delete(left);
      expect(new Net().loadStateDict(map)).toEqual({ missing: [], unexpected: [] });
    }
  });

  it('missing and unexpected tensors are errors that name them, or a report', () => {
    const map = values();
    map.delete('h.1.proj.bias');
    map.set('foo', tensor([1]));
    const net = new Net();
    expect(() => net.loadStateDict(map)).toThrow(/missing h\.1\.proj\.bias; unexpected foo/);
    expect(net.wte.weight.isMeta).toBe(true);
    expect(net.loadStateDict(map, { strict: false })).toEqual({ missing: ['h.1.proj.bias'], unexpected: ['foo'] });
    expect(net.wte.weight.isMeta).toBe(false);
  });

  it('wrong shapes and integers are refused before anything changes, strict or not', () => {
    const wrong: [string, Tensor, RegExp][] = [
      ['wte.weight', tensor([1, 2]), /wte\.weight: expected shape \[10, 4\], got \[2\]/],
      ['h.0.norm.bias', tensor([1, 2, 3, 4], { dtype: 'int32' }), /h\.0\.norm\.bias: expected float32, got int32/],
    ];
    for (const [name, value, message] of wrong) {
      const net = new Net();
      expect(() => net.loadStateDict(new Map([...values(), [name, value]]), { strict: false })).toThrow(message);
      expect(net.parameters().every((p) => p.isMeta)).toBe(true);
    }
  });
});

describe('moves', () => {
  it('keep parameters and ties, cast floats only', () => {
    const net = new nn.Sequential(new nn.Linear(3, 3), new nn.Linear(3, 3));
    const [a, b] = [net.at(0) as nn.Linear, net.at(1) as nn.Linear];
    b.weight = a.weight;
    b.registerBuffer('ids', tensor([1, 2], { dtype: 'int32' }));
    const before = a.weight;
    expect(net.to({ dtype: 'float16' })).toBe(net);
    expect(b.weight).toBe(before);
    expect(before.dtype).toBe('float16');
    expect(names(b.namedBuffers())).toEqual(['ids']);
    expect(b.buffers()[0]?.dtype).toBe('int32');
    net.to('cpu:1');
    expect(net.parameters().every((p) => p.device === 'cpu:1')).toBe(true);
    net.to('meta');
    expect(net.parameters().every((p) => p.isMeta)).toBe(true);
  });

  it('leaving meta without values throws before anything moves and names the tensor', () => {
    const net = new nn.Sequential(new nn.Linear(2, 2), new nn.Linear(2, 2, META));
    expect(() => net.to({ device: 'cpu:1' })).toThrow(StateError);
    expect(() => net.to({ device: 'cpu:1' })).toThrow(/got 1\.weight on meta/);
    expect(net.parameters()[0]?.device).toBe('cpu:0');
  });

  it('non-persistent buffers keep their values when a module goes to meta', () => {
    const net = new Net();
    net.to('meta');
    expect(net.namedBuffers().map(([name, buffer]) => [name, buffer.isMeta])).toEqual([
      ['scale', true],
      ['cache', false],
    ]);
  });
});

describe('setModuleTensorToDevice', () => {
  it('places values, casts to the dtype, keeps the object, its class and its ties', () => {
    const net = new Net();
    const weight = net.wte.weight;
    setModuleTensorToDevice(net, 'head.weight', 'cpu', {
      value: tensor(new Float32Array(40).fill(1 / 3), { shape: [10, 4] }),
      dtype: 'float16',
    });
    expect(net.wte.weight).toBe(weight);
    expect([weight.dtype, weight.device]).toEqual(['float16', 'cpu:0']);
    setModuleTensorToDevice(net, 'wte.weight', 'meta');
    expect(weight.isMeta).toBe(true);
  });

  it('takes number arrays and buffers, also non-persistent ones', () => {
    const net = new Net();
    setModuleTensorToDevice(net, 'h.0.norm.bias', 'cpu', { value: [1, 2, 3, 4] });
    setModuleTensorToDevice(net, 'scale', 'cpu', { value: [5] });
    setModuleTensorToDevice(net, 'cache', 'cpu:1');
    expect(net.getParameter('h.0.norm.bias').toArray()).toEqual([1, 2, 3, 4]);
    expect(net.namedBuffers().map(([, buffer]) => buffer.device)).toEqual(['cpu:0', 'cpu:1']);
    expect(net.isPersistent('cache')).toBe(false);
  });

  it('says what is wrong', () => {
    const net = new Net();
    const set = (name: string, options = {}): void => setModuleTensorToDevice(net, name, 'cpu', options);
    expect(() => set('wte.weight')).toThrow(/wte\.weight: expected values to put on cpu:0, got a tensor on meta/);
    expect(() => set('wte.weight', { value: [[1, 2]] })).toThrow(CheckpointError);
    expect(() => set('wte.weight', { value: [[1, 2]] })).toThrow(/expected a value of shape \[10, 4\], got \[1, 2\]/);
    expect(() => set('wte.wieght', { value: [1] })).toThrow(/expected a parameter or buffer/);
    expect(() => set('h.0.norm.bias', { value: tensor([1, 2, 3, 4], { dtype: 'int8' }) })).toThrow(
      /expected float32, got a value of int8/,
    );
  });
});

describe('layers on the cpu', () => {
  it('take any rank of x and keep its dtype', () => {
    const linear = new nn.Linear(3, 2);
    const rows = linear
      .forward(
        tensor([
          [1, 2, 3],
          [4, 5, 6],
        ]),
      )
      .toArray() as number[][];
    expect(linear.forward(tensor([1, 2, 3])).toArray()).toEqual(rows[0]);
    expect(linear.forward(tensor([[[1, 2, 3]], [[4, 5, 6]]])).toArray()).toEqual(rows.map((row) => [row]));
    expect(linear.forward(tensor([1, 2, 3], { dtype: 'float16' })).dtype).toBe('float16');
    expect(linear.forward(empty([0, 3])).shape).toEqual([0, 2]);
    expect(() => linear.forward(tensor([1, 2]))).toThrow(/expected x \[\.\.\., 3\], got \[2\]/);
  });

  it('LayerNorm, RMSNorm, Embedding and activations compute their formulas', () => {
    const x = tensor([[1, 2, 3, 6]]);
    const close = (got: Tensor, want: number[]): void => {
      for (const [i, value] of got.toFloat32Array().entries()) expect(value).toBeCloseTo(want[i] as number, 5);
    };
    const sd = Math.sqrt(3.5 + 1e-5);
    close(new nn.LayerNorm(4).forward(x), [-2 / sd, -1 / sd, 0, 3 / sd]);
    const rms = Math.sqrt(12.5 + 1e-6);
    close(new nn.RMSNorm(4).forward(x), [1 / rms, 2 / rms, 3 / rms, 6 / rms]);
    close(new nn.ReLU().forward(tensor([-1, 2])), [0, 2]);
    close(new nn.Tanh().forward(tensor([0.5])), [Math.tanh(0.5)]);
    close(new nn.SiLU().forward(tensor([2])), [2 / (1 + Math.exp(-2))]);
    const table = new nn.Embedding(5, 2);
    const rows = table.weight.toArray() as number[][];
    expect(table.forward(tensor([[3, 0]], { dtype: 'int32' })).toArray()).toEqual([[rows[3], rows[0]]]);
  });

  it('initialization follows the seed', () => {
    const draw = (seed: number): number[] => {
      nn.manualSeed(seed);
      return new nn.Linear(4, 4).weight.toArray() as number[];
    };
    expect(draw(3)).toEqual(draw(3));
    expect(draw(3)).not.toEqual(draw(4));
    expect(
      draw(5)
        .flat()
        .every((value) => Math.abs(value) <= 0.5),
    ).toBe(true);
  });
});
