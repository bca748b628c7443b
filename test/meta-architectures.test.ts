/**
 * Architectures: configs in every spelling, refusals by name, tensor names of real checkpoints, positions. All on meta,
 * no native code.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openCheckpointSync, type Tensor, UnsupportedConfigError } from '@metashard/core';
import { buildModel, findArchitecture, findTiedParameters, type nn, Parameter, replaceLinear } from '@metashard/meta';
import { describe, expect, it } from 'vitest';

const LLAMA = {
  model_type: 'llama',
  vocab_size: 50,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
};
const BLOOM = { model_type: 'bloom', vocab_size: 50, hidden_size: 48, n_layer: 2, n_head: 6 };
const OPT = { ...LLAMA, model_type: 'opt', ffn_dim: 96 };
const GPT2 = { model_type: 'gpt2', n_embd: 48, n_layer: 2, n_head: 6 };
const build = (base: object, extra: object = {}): nn.Module => buildModel({ ...base, ...extra }).model;
const constants = (model: nn.Module): number[] => Array.from(model.buffers()[0]?.toFloat32Array() ?? []);
const shapeOf = (model: nn.Module, name: string): number[] => model.getParameter(name).shape;
const names = (model: nn.Module): string[] => model.namedParameters().map(([name]) => name);

describe.each(['bloom', 'llama', 'mistral', 'opt', 'gpt2', 't5', 'babyllama105', 'stories260K-bnb8'])('%s', (name) => {
  const folder = fileURLToPath(new URL(`./fixtures/models/${name}/`, import.meta.url));
  const raw = JSON.parse(readFileSync(`${folder}config.json`, 'utf8'));

  it('has exactly the tensors of its checkpoint, of their shapes', () => {
    const { model, config } = buildModel(raw);
    if (raw.quantization_config !== undefined) replaceLinear(model);
    const stored = [...openCheckpointSync(folder).tensors].filter(([key]) => !key.endsWith('.weight_format'));
    const wanted = model.namedParameters().flatMap(([key, parameter]) => parameter.weightTensors(key));
    const sorted = (entries: [string, readonly unknown[]][]): unknown[] => entries.sort(([a], [b]) => (a < b ? -1 : 1));
    const storedDims = (tensor: Tensor) => (tensor instanceof Parameter ? tensor.storedDims : tensor.dims);
    expect(sorted(wanted.map(([key, tensor]) => [key, storedDims(tensor)]))).toEqual(
      sorted(stored.map(([key, { shape }]) => [key, shape])),
    );
    expect(config.ignoredFields).toEqual([]);
    expect(findTiedParameters(model)).toHaveLength(raw.tie_word_embeddings ? 1 : 0);
  });
});

describe('reading configs', () => {
  it('both spellings give the same model', () => {
    const old = buildModel({
      ...LLAMA,
      torch_dtype: 'bfloat16',
      rope_theta: 5e5,
      rope_scaling: { type: 'linear', factor: 2 },
    });
    const parameters = { rope_theta: 5e5, rope_type: 'linear', factor: 2 };
    const current = buildModel({ ...LLAMA, dtype: 'bfloat16', rope_parameters: parameters });
    expect(constants(old.model)).toEqual(constants(current.model));
    expect([old.config.dtype, current.config.dtype]).toEqual(['bfloat16', 'bfloat16']);
    const bloom = { model_type: 'bloom', vocab_size: 50, n_embed: 48, num_hidden_layers: 2, num_attention_heads: 6 };
    expect(names(build(bloom))).toEqual(names(build(BLOOM)));
  });

  it('what every config has', () => {
    const { config, architecture } = buildModel({
      ...LLAMA,
      num_key_value_heads: 2,
      head_dim: 8,
      max_position_embeddings: 77,
      bos_token_id: 1,
      eos_token_id: [2, 3],
      pad_token_id: null,
    });
    expect(config).toMatchObject({
      modelType: 'llama',
      vocabSize: 50,
      hiddenSize: 64,
      numLayers: 2,
      numHeads: 4,
      numKvHeads: 2,
      headDim: 8,
      maxPositionEmbeddings: 77,
      bosTokenId: 1,
      eosTokenIds: [2, 3],
      padTokenId: null,
      tieWordEmbeddings: false,
      dtype: 'float32',
    });
    expect(architecture).toMatchObject({
      noSplit: ['LlamaDecoderLayer'],
      blocksPath: 'model.layers',
      baseModelPrefix: 'model',
    });
    const bloom = buildModel({ ...BLOOM, eos_token_id: 2 });
    expect(bloom.config).toMatchObject({
      eosTokenIds: [2],
      bosTokenId: null,
      maxPositionEmbeddings: null,
      tieWordEmbeddings: true,
    });
    for (const { architecture: built, model } of [buildModel(LLAMA), bloom]) {
      const blocks = model.getModule(built.blocksPath).children();
      expect(blocks.map((block) => block.constructor.name)).toEqual([built.noSplit[0], built.noSplit[0]]);
    }
  });

  it('dtype: the config or the caller', () => {
    const dtypes = (dtype?: 'float16' | 'auto'): string[] => {
      const { model } = buildModel({ ...LLAMA, dtype: 'bfloat16' }, dtype === undefined ? {} : { dtype });
      return [...new Set(model.parameters().map((p) => p.dtype))];
    };
    expect([dtypes(), dtypes('auto'), dtypes('float16')]).toEqual([['bfloat16'], ['bfloat16'], ['float16']]);
  });

  it('llama: grouped heads, head_dim, biases, tied and untied heads', () => {
    const model = build(LLAMA, { num_key_value_heads: 2, head_dim: 10, attention_bias: true, mlp_bias: true });
    const at = (name: string): number[] => shapeOf(model, `model.layers.1.${name}`);
    expect(at('self_attn.q_proj.weight')).toEqual([40, 64]);
    expect(at('self_attn.k_proj.weight')).toEqual([20, 64]);
    expect(at('self_attn.v_proj.bias')).toEqual([20]);
    expect(at('self_attn.o_proj.weight')).toEqual([64, 40]);
    expect(at('self_attn.o_proj.bias')).toEqual([64]);
    expect(at('mlp.down_proj.bias')).toEqual([64]);
    expect(names(build(LLAMA)).filter((name) => name.endsWith('.bias'))).toEqual([]);
    expect(names(build(LLAMA))).toContain('lm_head.weight');
    expect(names(build(LLAMA, { tie_word_embeddings: true }))).not.toContain('lm_head.weight');
  });

  it('windows: the field, its absence, layer_types, use_sliding_window', () => {
    const windows = (extra: object): number[] => {
      const blocks = build(LLAMA, { num_key_value_heads: 4, ...extra })
        .getModule('model.layers')
        .children();
      return blocks.map((block) => (block.getModule('self_attn') as nn.Module & { window: number }).window);
    };
    expect(windows({ sliding_window: 5 })).toEqual([5, 5]);
    expect(windows({})).toEqual([0, 0]);
    expect(windows({ model_type: 'mistral' })).toEqual([4096, 4096]);
    expect(windows({ model_type: 'mistral', sliding_window: null })).toEqual([0, 0]);
    expect(windows({ sliding_window: 5, layer_types: ['full_attention', 'sliding_attention'] })).toEqual([0, 5]);
    expect(windows({ sliding_window: 5, use_sliding_window: false })).toEqual([0, 0]);
  });

  it('fields nobody knows are listed', () => {
    expect(buildModel({ ...LLAMA, logits_scaling: 2, use_cache: true }).config.ignoredFields).toEqual([
      'logits_scaling',
    ]);
  });
});

describe('refusals name the field', () => {
  const cases: [string, object, object][] = [
    ['model_type', {}, { model_type: 'gpt9' }],
    ['hidden_act', LLAMA, { hidden_act: 'mish' }],
    ['rope_scaling.rope_type', LLAMA, { rope_scaling: { type: 'dynamic', factor: 2 } }],
    ['rope_parameters.rope_type', LLAMA, { rope_parameters: { rope_type: 'yarn', factor: 2 } }],
    ['rope_parameters.factor', LLAMA, { rope_parameters: { rope_type: 'linear' } }],
    ['rope_parameters.beta_fast', LLAMA, { rope_parameters: { rope_type: 'linear', factor: 2, beta_fast: 3 } }],
    ['partial_rotary_factor', LLAMA, { partial_rotary_factor: 0.5 }],
    ['rope_interleaved', LLAMA, { rope_interleaved: true }],
    ['layer_types', LLAMA, { layer_types: ['chunked_attention', 'full_attention'] }],
    ['num_key_value_heads', LLAMA, { num_key_value_heads: 3 }],
    ['head_dim', LLAMA, { head_dim: 7 }],
    ['is_encoder_decoder', LLAMA, { is_encoder_decoder: true }],
    ['pruned_heads', LLAMA, { pruned_heads: { 0: [1] } }],
    ['dtype', LLAMA, { dtype: 'float8_e4m3fn' }],
    ['vocab_size', BLOOM, { vocab_size: undefined }],
    ['n_layer', BLOOM, { n_layer: 2.5 }],
    ['n_head', BLOOM, { n_head: 5 }],
    ['tie_word_embeddings', BLOOM, { tie_word_embeddings: 'yes' }],
    ['layer_norm_elementwise_affine', OPT, { layer_norm_elementwise_affine: false }],
    ['num_attention_heads', OPT, { num_attention_heads: 7 }],
    ['activation_function', GPT2, { activation_function: 'mish' }],
    ['add_cross_attention', GPT2, { add_cross_attention: true }],
    ['is_encoder_decoder', { model_type: 't5' }, { is_encoder_decoder: false }],
  ];
  it.each(cases)('%s', (field, base, extra) => {
    expect(() => build(base, extra)).toThrow(UnsupportedConfigError);
    expect(() => build(base, extra)).toThrow(`config.json ${field}: expected `);
  });

  it('an unknown model_type gets the nearest known one', () => {
    expect(() => findArchitecture({ model_type: 'blom' })).toThrow(
      expect.objectContaining({ hint: 'did you mean bloom?' }),
    );
  });
});

describe('positions', () => {
  it('ALiBi slopes of powers of two and of other head counts', () => {
    const slopes = (heads: number): number[] => constants(build(BLOOM, { n_head: heads, hidden_size: 8 * heads }));
    expect(slopes(8)).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((i) => 2 ** -i));
    expect(slopes(6)).toEqual([-2, -4, -6, -8, -1, -3].map((e) => 2 ** e));
    expect(slopes(112)).toHaveLength(112);
    expect(slopes(112)[63]).toBeCloseTo(2 ** -8, 8);
    expect(slopes(112)[64]).toBeCloseTo(2 ** -(1 / 16), 6);
    expect(slopes(112)[111]).toBeCloseTo(2 ** -(95 / 16), 6);
  });

  it('rotary frequencies: plain, linear, Llama 3', () => {
    const [theta, D] = [5e5, 128];
    const frequencies = (rope: object): number[] =>
      constants(build(LLAMA, { head_dim: D, rope_parameters: { rope_theta: theta, ...rope } }));
    const plain = Array.from({ length: D / 2 }, (_, i) => theta ** ((-2 * i) / D));
    const close = (got: number[], want: number[]): void => {
      expect(got).toHaveLength(want.length);
      for (const [i, value] of got.entries()) expect(Math.abs(value / (want[i] as number) - 1)).toBeLessThan(5e-7);
    };
    close(frequencies({ rope_type: 'default' }), plain);
    close(
      frequencies({ rope_type: 'linear', factor: 4 }),
      plain.map((f) => f / 4),
    );
    const scaling = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };
    close(
      frequencies({ rope_type: 'llama3', ...scaling }),
      plain.map((f) => {
        const turns = (8192 * f) / (2 * Math.PI);
        const smooth = Math.min(1, Math.max(0, (turns - 1) / 3));
        return (1 - smooth) * (f / 8) + smooth * f;
      }),
    );
  });
});
