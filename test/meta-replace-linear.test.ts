/** replaceLinear: what it replaces, what it keeps and why. All on meta. */
import { buildModel, findTiedParameters, Int8Params, Linear8bitLt, nn, replaceLinear } from '@metashard/meta';
import { describe, expect, it } from 'vitest';

const META = { device: 'meta' } as const;
const config = { model_type: 'llama', hidden_size: 32, num_attention_heads: 4, vocab_size: 50, intermediate_size: 64 };
const llama = (options = {}): nn.Module => buildModel({ ...config, num_hidden_layers: 11, ...options }).model;
const linears = (model: nn.Module): string[] =>
  model
    .namedModules()
    .filter(([, module]) => module instanceof nn.Linear && !(module instanceof Linear8bitLt))
    .map(([name]) => name);

describe('replaceLinear', () => {
  it('replaces every linear but the head, in place, on meta, with transformers defaults', () => {
    const model = llama();
    const all = linears(model);
    const { replaced, skipped } = replaceLinear(model);
    expect(skipped).toEqual([{ name: 'lm_head', reason: 'the output head stays in float' }]);
    expect(replaced).toEqual(all.filter((name) => name !== 'lm_head'));
    expect(replaced).toHaveLength(11 * 7);
    const layer = model.getModule('model.layers.10.mlp.up_proj') as Linear8bitLt;
    expect([layer.threshold, layer.hasFp16Weights, layer.weight.isMeta, layer.weight.CB]).toEqual([
      6,
      false,
      true,
      null,
    ]);
    expect(layer.weight.weightTensors('x.weight').map(([name, t]) => [name, t.dtype, t.layout, t.dims])).toEqual([
      ['x.weight', 'int8', 'packed_int8', [64, 32]],
      ['x.SCB', 'float32', 'strided', [64]],
    ]);
    expect(replaceLinear(model).replaced).toEqual([]);
  });

  it('head: the untied head alone', () => {
    const model = llama();
    const { replaced, skipped } = replaceLinear(model, { head: true });
    expect(skipped).toEqual([]);
    expect(replaced.at(-1)).toBe('lm_head');
    expect(model.getParameter('model.embed_tokens.weight')).not.toBeInstanceOf(Int8Params);
  });

  it('head: a tied head and its embeddings share one int8 parameter; a skip list still keeps it', () => {
    const model = llama({ tie_word_embeddings: true });
    const names = model.namedParameters().map(([name]) => name);
    expect(replaceLinear(model, { head: true }).skipped).toEqual([]);
    expect(model.getParameter('lm_head.weight')).toBeInstanceOf(Int8Params);
    expect(model.getParameter('model.embed_tokens.weight')).toBe(model.getParameter('lm_head.weight'));
    expect(model.namedParameters().map(([name]) => name)).toEqual(names);
    expect(findTiedParameters(model)).toEqual([['lm_head.weight', 'model.embed_tokens.weight']]);
    const kept = llama({ tie_word_embeddings: true });
    expect(replaceLinear(kept, { head: true, skip: ['lm_head'] }).skipped).toEqual([
      { name: 'lm_head', reason: 'skip list: lm_head' },
    ]);
    expect(kept.getParameter('model.embed_tokens.weight')).not.toBeInstanceOf(Int8Params);
  });

  it('head: tied to anything but embeddings it stays', () => {
    class Odd extends nn.Module {
      scales = new nn.Embedding(6, 4, META).weight;
      lm_head = new nn.Linear(4, 6, META);
      constructor() {
        super();
        this.lm_head.weight = this.scales;
      }
      forward(): never {
        throw new Error('not run');
      }
    }
    expect(replaceLinear(new Odd(), { head: true }).skipped).toEqual([
      { name: 'lm_head', reason: 'its weight is tied to the root' },
    ]);
  });

  it('keeps the order and the names of parameters', () => {
    const [model, before] = [llama(), llama().namedParameters()];
    replaceLinear(model);
    expect(model.namedParameters().map(([name]) => name)).toEqual(before.map(([name]) => name));
  });

  it('skip entries are whole components anywhere, and all below; they add to the default', () => {
    const cases: [string[], (name: string) => boolean][] = [
      [['layers.1'], (name) => name.startsWith('model.layers.1.')],
      [['mlp'], (name) => name.includes('.mlp.')],
      [['layers.0', 'k_proj'], (name) => name.startsWith('model.layers.0.') || name.endsWith('.k_proj')],
      [['self_attn.q_proj'], (name) => name.endsWith('self_attn.q_proj')],
      [['proj', 'layer', 'ayers.1'], () => false],
    ];
    for (const [skip, kept] of cases) {
      const model = llama();
      const { skipped } = replaceLinear(model, { skip });
      expect(linears(model).filter((name) => name !== 'lm_head')).toEqual(
        linears(llama()).filter((name) => name !== 'lm_head' && kept(name)),
      );
      expect(skipped.at(-1)?.name).toBe('lm_head');
      for (const { name, reason } of skipped.slice(0, -1)) {
        expect(skip.some((entry) => reason === `skip list: ${entry}` && `.${name}.`.includes(`.${entry}.`))).toBe(true);
      }
    }
  });

  it('a head tied to the embedding stays float under any name, and tied', () => {
    class Tied extends nn.Module {
      table = new nn.Embedding(10, 4, META);
      body = new nn.Linear(4, 4, META);
      output = new nn.Linear(4, 10, { bias: false, ...META });
      constructor() {
        super();
        this.output.weight = this.table.weight;
      }
      forward(): void {}
    }
    const model = new Tied();
    expect(replaceLinear(model)).toEqual({
      replaced: ['body'],
      skipped: [{ name: 'output', reason: 'its weight is tied to table' }],
    });
    expect(findTiedParameters(model)).toEqual([['output.weight', 'table.weight']]);
    expect(replaceLinear(llama({ tie_word_embeddings: true })).skipped.map(({ name }) => name)).toEqual(['lm_head']);
  });

  it('linears tied to each other share one 8-bit weight; a shared module stays shared', () => {
    const [a, b] = [new nn.Linear(4, 4, META), new nn.Linear(4, 4, META)];
    b.weight = a.weight;
    const net = new nn.Sequential(a, b, a);
    expect(replaceLinear(net).replaced).toEqual(['0', '1', '2']);
    expect(net.at(2)).toBe(net.at(0));
    expect((net.at(1) as Linear8bitLt).weight).toBe((net.at(0) as Linear8bitLt).weight);
  });

  it('keeps biases, training mode and options; leaves classes with a forward of their own', () => {
    class Doubling extends nn.Linear {
      override forward(): never {
        throw new Error('not called');
      }
    }
    const linear = new nn.Linear(4, 4, META).eval();
    const net = new nn.Sequential(linear, new Doubling(4, 4, META));
    const { skipped } = replaceLinear(net, { threshold: 3, hasFp16Weights: true, outliers: 'per-row' });
    const layer = net.at(0) as Linear8bitLt;
    expect(layer.bias).toBe(linear.bias);
    expect([layer.training, layer.threshold, layer.hasFp16Weights, layer.outliers]).toEqual([
      false,
      3,
      true,
      'per-row',
    ]);
    expect(skipped).toEqual([{ name: '1', reason: 'Doubling computes in its own way' }]);
    expect(replaceLinear(new nn.Linear(2, 2, META)).skipped[0]?.name).toBe('');
  });
});
