/**
 * GPT-2 (Radford et al. 2019; transformers' modeling_gpt2.py). Learned positions, LayerNorm before attention and MLP,
 * q, k and v side by side in one projection, a tied head; its linear layers are Conv1D, whose float weights checkpoints
 * hold as [in, out]. Names are the checkpoint's. Dims: T tokens, H hidden, N heads, D head size, V vocabulary.
 */
import { type ActivationKind, type DType, F, type Tensor } from '@metashard/core';
import type { CausalLM, CausalLMInputs } from '../causal-lm.js';
import type { ForwardContext } from '../forward-context.js';
import { Module } from '../module.js';
import { ModuleList } from '../module-list.js';
import { Conv1D, Embedding, LayerNorm, Linear } from '../nn/index.js';
import { ConfigReader, type ParsedConfig, type RawConfig } from './config-reader.js';
import type { Architecture } from './registry.js';

interface GPT2Config extends ParsedConfig {
  readonly maxPositionEmbeddings: number;
  readonly intermediateSize: number;
  readonly layerNormEpsilon: number;
  readonly activation: ActivationKind;
  /** Scale of the attention scores of each layer. */
  readonly scales: readonly number[];
}

interface Factory {
  dtype: DType;
}

class GPT2LMHeadModel extends Module implements CausalLM {
  readonly transformer: GPT2Model;
  readonly lm_head: Linear;

  constructor(config: GPT2Config, factory: Factory) {
    super();
    this.transformer = new GPT2Model(config, factory);
    this.lm_head = new Linear(config.hiddenSize, config.vocabSize, { bias: false, ...factory });
    if (config.tieWordEmbeddings) this.lm_head.weight = this.transformer.wte.weight;
  }

  forward({ inputIds, outputRows }: CausalLMInputs, context: ForwardContext): Tensor {
    const hidden = this.transformer.forward(inputIds, context); // [T, H]
    return this.lm_head.forward(F.selectRows(hidden, outputRows)); // [outputs, V]
  }
}

class GPT2Model extends Module {
  readonly wte: Embedding;
  readonly wpe: Embedding;
  readonly h: ModuleList<GPT2Block>;
  readonly ln_f: LayerNorm;

  constructor(config: GPT2Config, factory: Factory) {
    super();
    const { vocabSize, hiddenSize, maxPositionEmbeddings, scales, layerNormEpsilon: eps } = config;
    this.wte = new Embedding(vocabSize, hiddenSize, factory);
    this.wpe = new Embedding(maxPositionEmbeddings, hiddenSize, factory);
    this.h = new ModuleList(scales.map((scale) => new GPT2Block(config, scale, factory)));
    this.ln_f = new LayerNorm(hiddenSize, { eps, ...factory });
  }

  forward(inputIds: Tensor, context: ForwardContext): Tensor {
    let hidden = F.add(this.wte.forward(inputIds), this.wpe.forward(context.positions)); // [T, H]
    let depth = 0;
    for (const block of this.h) {
      context.tap(`hidden_states.${depth++}`, hidden);
      hidden = block.forward(hidden, context);
    }
    hidden = this.ln_f.forward(hidden);
    context.tap(`hidden_states.${depth}`, hidden);
    return hidden;
  }
}

class GPT2Block extends Module {
  readonly ln_1: LayerNorm;
  readonly attn: GPT2Attention;
  readonly ln_2: LayerNorm;
  readonly mlp: GPT2MLP;

  constructor(config: GPT2Config, scale: number, factory: Factory) {
    super();
    const norm = { eps: config.layerNormEpsilon, ...factory };
    this.ln_1 = new LayerNorm(config.hiddenSize, norm);
    this.attn = new GPT2Attention(config, scale, factory);
    this.ln_2 = new LayerNorm(config.hiddenSize, norm);
    this.mlp = new GPT2MLP(config, factory);
  }

  forward(hidden: Tensor, context: ForwardContext): Tensor {
    const middle = F.add(hidden, this.attn.forward(this.ln_1.forward(hidden), context));
    return F.add(middle, this.mlp.forward(this.ln_2.forward(middle))); // [T, H]
  }
}

class GPT2Attention extends Module {
  readonly c_attn: Conv1D;
  readonly c_proj: Conv1D;
  readonly numHeads: number;
  readonly headDim: number;
  readonly scale: number;

  constructor({ hiddenSize, numHeads, headDim }: GPT2Config, scale: number, factory: Factory) {
    super();
    this.numHeads = numHeads;
    this.headDim = headDim;
    this.scale = scale;
    this.c_attn = new Conv1D(hiddenSize, 3 * hiddenSize, factory);
    this.c_proj = new Conv1D(hiddenSize, hiddenSize, factory);
  }

  forward(x: Tensor, context: ForwardContext): Tensor {
    const { numHeads, headDim, scale } = this;
    const fused = this.c_attn.forward(x).unflatten(1, [3, numHeads, headDim]); // [T, 3, N, D]
    const [q, k, v] = [fused.select(1, 0), fused.select(1, 1), fused.select(1, 2)]; // [T, N, D] each
    const cache = context.cache(this, numHeads, headDim);
    const out = F.attention(q, k, v, context.step, { scale, causal: true, cache });
    return this.c_proj.forward(out.flatten(1)); // [T, N, D] → [T, H]
  }
}

class GPT2MLP extends Module {
  readonly c_fc: Conv1D;
  readonly c_proj: Conv1D;
  readonly activation: ActivationKind;

  constructor({ hiddenSize, intermediateSize, activation }: GPT2Config, factory: Factory) {
    super();
    this.activation = activation;
    this.c_fc = new Conv1D(hiddenSize, intermediateSize, factory);
    this.c_proj = new Conv1D(intermediateSize, hiddenSize, factory);
  }

  forward(x: Tensor): Tensor {
    return this.c_proj.forward(F.activation(this.c_fc.forward(x), this.activation));
  }
}

/** 1/√D unless switched off; `scale_attn_by_inverse_layer_idx` divides by the layer's number, counted from 1. */
function scalesOf(reader: ConfigReader, headDim: number): number[] {
  const scale = reader.flag('scale_attn_weights', { default: true }) ? 1 / Math.sqrt(headDim) : 1;
  const byLayer = reader.flag('scale_attn_by_inverse_layer_idx', { default: false });
  const numLayers = reader.count(['n_layer', 'num_hidden_layers'], { default: 12 });
  return Array.from({ length: numLayers }, (_, layer) => (byLayer ? scale / (layer + 1) : scale));
}

function parse(raw: RawConfig): GPT2Config {
  const reader = new ConfigReader(raw);
  const hiddenSize = reader.count(['n_embd', 'hidden_size'], { default: 768 });
  const numHeads = reader.count(['n_head', 'num_attention_heads'], { default: 12 });
  if (hiddenSize % numHeads !== 0) throw reader.refusal('n_head', numHeads, `a divisor of n_embd ${hiddenSize}`);
  const headDim = hiddenSize / numHeads;
  const scales = scalesOf(reader, headDim);
  // How float16 training orders its roundings, dropout, and heads of other tasks.
  reader.neutral('reorder_and_upcast_attn', 'attn_pdrop', 'resid_pdrop', 'n_ctx', 'summary_activation');
  reader.neutral('summary_first_dropout', 'summary_proj_to_labels', 'summary_type', 'summary_use_proj');
  return {
    hiddenSize,
    numHeads,
    headDim,
    scales,
    numLayers: scales.length,
    numKvHeads: numHeads,
    maxPositionEmbeddings: reader.count(['n_positions', 'max_position_embeddings'], { default: 1024 }),
    intermediateSize: reader.count('n_inner', { default: 4 * hiddenSize }),
    layerNormEpsilon: reader.number('layer_norm_epsilon', { default: 1e-5 }),
    activation: reader.activation('activation_function', 'gelu_new'),
    ...reader.shared({ tied: true, vocabSize: 50_257 }),
  };
}

export const gpt2: Architecture<GPT2Config> = {
  modelTypes: ['gpt2'],
  parse,
  build: (config, factory) => new GPT2LMHeadModel(config, factory),
  noSplit: ['GPT2Block'],
  blocksPath: 'transformer.h',
  baseModelPrefix: 'transformer',
  ignoredTensors: [/(^|\.)attn\.(bias|masked_bias)$/],
};
