/**
 * Llama (Touvron et al. 2023; Grattafiori et al. 2024) and Mistral (Jiang et al. 2023): transformers' modeling_llama.py
 * and modeling_mistral.py, which differ by the sliding window and by defaults. Rotary positions, RMSNorm, grouped-query
 * attention, gated MLP. Names are the checkpoint's. Dims: T tokens, H hidden, N heads, KV key-value heads, D head size,
 * V vocabulary.
 */
import { type ActivationKind, type DType, F, type Tensor } from '@metashard/core';
import type { CausalLM, CausalLMInputs } from '../causal-lm.js';
import { ConstantTensor } from '../constant-tensor.js';
import type { ForwardContext } from '../forward-context.js';
import { Module } from '../module.js';
import { ModuleList } from '../module-list.js';
import { Embedding, Linear, RMSNorm } from '../nn/index.js';
import { ConfigReader, type ParsedConfig, type RawConfig } from './config-reader.js';
import type { Architecture } from './registry.js';
import { inverseFrequencies } from './rotary.js';

interface LlamaConfig extends ParsedConfig {
  readonly intermediateSize: number;
  readonly rmsNormEps: number;
  readonly activation: ActivationKind;
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  /** Keys a query sees in each layer, itself included; 0: all. */
  readonly windows: readonly number[];
  /** [D / 2] */
  readonly inverseFrequencies: Float32Array;
}

interface Factory {
  dtype: DType;
}

class LlamaForCausalLM extends Module implements CausalLM {
  readonly model: LlamaModel;
  readonly lm_head: Linear;

  constructor(config: LlamaConfig, factory: Factory) {
    super();
    this.model = new LlamaModel(config, factory);
    this.lm_head = new Linear(config.hiddenSize, config.vocabSize, { bias: false, ...factory });
    if (config.tieWordEmbeddings) this.lm_head.weight = this.model.embed_tokens.weight;
  }

  forward({ inputIds, outputRows }: CausalLMInputs, context: ForwardContext): Tensor {
    const hidden = this.model.forward(inputIds, context); // [T, H]
    return this.lm_head.forward(F.selectRows(hidden, outputRows)); // [outputs, V]
  }
}

class LlamaModel extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: ModuleList<LlamaDecoderLayer>;
  readonly norm: RMSNorm;

  constructor(config: LlamaConfig, factory: Factory) {
    super();
    const frequencies = new ConstantTensor(config.inverseFrequencies);
    this.embed_tokens = new Embedding(config.vocabSize, config.hiddenSize, factory);
    this.layers = new ModuleList(
      config.windows.map((window) => new LlamaDecoderLayer(config, window, frequencies, factory)),
    );
    this.norm = new RMSNorm(config.hiddenSize, { eps: config.rmsNormEps, ...factory });
  }

  forward(inputIds: Tensor, context: ForwardContext): Tensor {
    let hidden = this.embed_tokens.forward(inputIds); // [T, H]
    let depth = 0;
    for (const layer of this.layers) {
      context.tap(`hidden_states.${depth++}`, hidden);
      hidden = layer.forward(hidden, context);
    }
    hidden = this.norm.forward(hidden);
    context.tap(`hidden_states.${depth}`, hidden);
    return hidden;
  }
}

class LlamaDecoderLayer extends Module {
  readonly input_layernorm: RMSNorm;
  readonly self_attn: LlamaAttention;
  readonly post_attention_layernorm: RMSNorm;
  readonly mlp: LlamaMLP;

  constructor(config: LlamaConfig, window: number, frequencies: Tensor, factory: Factory) {
    super();
    const norm = { eps: config.rmsNormEps, ...factory };
    this.input_layernorm = new RMSNorm(config.hiddenSize, norm);
    this.self_attn = new LlamaAttention(config, window, frequencies, factory);
    this.post_attention_layernorm = new RMSNorm(config.hiddenSize, norm);
    this.mlp = new LlamaMLP(config, factory);
  }

  forward(hidden: Tensor, context: ForwardContext): Tensor {
    const middle = F.add(hidden, this.self_attn.forward(this.input_layernorm.forward(hidden), context));
    return F.add(middle, this.mlp.forward(this.post_attention_layernorm.forward(middle))); // [T, H]
  }
}

class LlamaAttention extends Module {
  readonly q_proj: Linear;
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly o_proj: Linear;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly window: number;
  declare readonly inv_freq: Tensor;

  constructor(config: LlamaConfig, window: number, frequencies: Tensor, factory: Factory) {
    super();
    const { hiddenSize, numHeads, numKvHeads, headDim, attentionBias } = config;
    const options = { bias: attentionBias, ...factory };
    this.numHeads = numHeads;
    this.numKvHeads = numKvHeads;
    this.headDim = headDim;
    this.window = window;
    this.q_proj = new Linear(hiddenSize, numHeads * headDim, options);
    this.k_proj = new Linear(hiddenSize, numKvHeads * headDim, options);
    this.v_proj = new Linear(hiddenSize, numKvHeads * headDim, options);
    this.o_proj = new Linear(numHeads * headDim, hiddenSize, options);
    this.registerBuffer('inv_freq', frequencies, { persistent: false });
  }

  forward(x: Tensor, context: ForwardContext): Tensor {
    const { numHeads, numKvHeads, headDim, window } = this;
    const q = this.q_proj.forward(x).unflatten(1, [numHeads, headDim]); // [T, N, D]
    const k = this.k_proj.forward(x).unflatten(1, [numKvHeads, headDim]); // [T, KV, D]
    const v = this.v_proj.forward(x).unflatten(1, [numKvHeads, headDim]); // [T, KV, D]
    const table = F.ropeTable(context.positions, this.inv_freq);
    const out = F.attention(F.rope(q, table), F.rope(k, table), v, context.step, {
      scale: 1 / Math.sqrt(headDim),
      causal: true,
      window,
      cache: context.cache(this, numKvHeads, headDim),
    });
    return this.o_proj.forward(out.flatten(1)); // [T, N, D] → [T, H]
  }
}

class LlamaMLP extends Module {
  readonly gate_proj: Linear;
  readonly up_proj: Linear;
  readonly down_proj: Linear;
  readonly activation: ActivationKind;

  constructor({ hiddenSize, intermediateSize, mlpBias, activation }: LlamaConfig, factory: Factory) {
    super();
    const options = { bias: mlpBias, ...factory };
    this.activation = activation;
    this.gate_proj = new Linear(hiddenSize, intermediateSize, options);
    this.up_proj = new Linear(hiddenSize, intermediateSize, options);
    this.down_proj = new Linear(intermediateSize, hiddenSize, options);
  }

  forward(x: Tensor): Tensor {
    const gate = F.activation(this.gate_proj.forward(x), this.activation);
    return this.down_proj.forward(F.mul(gate, this.up_proj.forward(x)));
  }
}

/**
 * The window of each layer. `layer_types` chooses layers, `use_sliding_window: false` none; a Mistral config without
 * the field means 4096.
 */
function windowsOf(reader: ConfigReader, numLayers: number): number[] {
  const byDefault = reader.modelType === 'mistral' && !('sliding_window' in reader.raw) ? 4096 : 0;
  const window = reader.count('sliding_window', { default: byDefault });
  if (!reader.flag('use_sliding_window', { default: true })) return new Array<number>(numLayers).fill(0);
  const types = reader.value('layer_types') ?? new Array<string>(numLayers).fill('sliding_attention');
  if (!Array.isArray(types) || types.length !== numLayers) {
    throw reader.refusal('layer_types', types, `a list of ${numLayers}`);
  }
  return types.map((type) => {
    if (type === 'sliding_attention') return window;
    if (type === 'full_attention') return 0;
    throw reader.refusal('layer_types', type, 'sliding_attention or full_attention');
  });
}

function parse(raw: RawConfig): LlamaConfig {
  const reader = new ConfigReader(raw);
  const mistral = reader.modelType === 'mistral';
  const hiddenSize = reader.count('hidden_size');
  const numHeads = reader.count('num_attention_heads');
  const numLayers = reader.count('num_hidden_layers');
  const kvHeadsByDefault = mistral && !('num_key_value_heads' in raw) ? 8 : numHeads;
  const numKvHeads = reader.count('num_key_value_heads', { default: kvHeadsByDefault });
  const headDim = reader.count('head_dim', { default: hiddenSize / numHeads });
  if (headDim % 2 !== 0) throw reader.refusal('head_dim', headDim, 'an even number');
  if (numHeads % numKvHeads !== 0) throw reader.refusal('num_key_value_heads', numKvHeads, `a divisor of ${numHeads}`);
  const maxPositionEmbeddings = reader.count('max_position_embeddings', { default: mistral ? 131_072 : 2048 });
  reader.only('rope_interleaved', [false], 'false');
  return {
    hiddenSize,
    numHeads,
    numLayers,
    numKvHeads,
    headDim,
    maxPositionEmbeddings,
    intermediateSize: reader.count('intermediate_size'),
    rmsNormEps: reader.number('rms_norm_eps', { default: 1e-6 }),
    activation: reader.activation('hidden_act', 'silu'),
    attentionBias: reader.flag('attention_bias', { default: false }),
    mlpBias: reader.flag('mlp_bias', { default: false }),
    windows: windowsOf(reader, numLayers),
    inverseFrequencies: inverseFrequencies(reader, headDim, maxPositionEmbeddings),
    ...reader.shared({ tied: false }),
  };
}

export const llama: Architecture<LlamaConfig> = {
  modelTypes: ['llama', 'mistral'],
  parse,
  build: (config, factory) => new LlamaForCausalLM(config, factory),
  noSplit: ['LlamaDecoderLayer'],
  blocksPath: 'model.layers',
  baseModelPrefix: 'model',
  ignoredTensors: [/\.rotary_emb\.inv_freq$/],
};
