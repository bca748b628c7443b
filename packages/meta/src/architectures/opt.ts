/**
 * OPT (Zhang et al. 2022, arXiv 2205.01068; transformers' modeling_opt.py). Learned positions whose table has two more
 * rows in front, LayerNorm before attention and MLP or, in OPT-350m, after them, embeddings that may be narrower than
 * the blocks, a tied head. Names are the checkpoint's. Dims: T tokens, E embeddings, H hidden, N heads, D head size, V
 * vocabulary.
 */
import { type ActivationKind, type DType, F, type Tensor } from '@metashard/core';
import type { CausalLM, CausalLMInputs } from '../causal-lm.js';
import type { ForwardContext } from '../forward-context.js';
import { Module } from '../module.js';
import { ModuleList } from '../module-list.js';
import { Embedding, LayerNorm, Linear } from '../nn/index.js';
import { ConfigReader, type ParsedConfig, type RawConfig } from './config-reader.js';
import type { Architecture } from './registry.js';

interface OPTConfig extends ParsedConfig {
  readonly maxPositionEmbeddings: number;
  /** E */
  readonly embeddingSize: number;
  readonly intermediateSize: number;
  readonly activation: ActivationKind;
  readonly bias: boolean;
  /** LayerNorms stand before attention and MLP, not after their residuals. */
  readonly normFirst: boolean;
  /** A LayerNorm after the last block. */
  readonly finalNorm: boolean;
}

interface Factory {
  dtype: DType;
}

class OPTForCausalLM extends Module implements CausalLM {
  readonly model: OPTModel;
  readonly lm_head: Linear;

  constructor(config: OPTConfig, factory: Factory) {
    super();
    this.model = new OPTModel(config, factory);
    this.lm_head = new Linear(config.embeddingSize, config.vocabSize, { bias: false, ...factory });
    if (config.tieWordEmbeddings) this.lm_head.weight = this.model.decoder.embed_tokens.weight;
  }

  forward({ inputIds, outputRows }: CausalLMInputs, context: ForwardContext): Tensor {
    const hidden = this.model.forward(inputIds, context); // [T, E]
    return this.lm_head.forward(F.selectRows(hidden, outputRows)); // [outputs, V]
  }
}

class OPTModel extends Module {
  readonly decoder: OPTDecoder;

  constructor(config: OPTConfig, factory: Factory) {
    super();
    this.decoder = new OPTDecoder(config, factory);
  }

  forward(inputIds: Tensor, context: ForwardContext): Tensor {
    return this.decoder.forward(inputIds, context);
  }
}

class OPTDecoder extends Module {
  readonly embed_tokens: Embedding;
  readonly embed_positions: OPTLearnedPositionalEmbedding;
  /** Between E and H; null where they are equal. */
  readonly project_out: Linear | null;
  readonly project_in: Linear | null;
  readonly final_layer_norm: LayerNorm | null;
  readonly layers: ModuleList<OPTDecoderLayer>;

  constructor(config: OPTConfig, factory: Factory) {
    super();
    const { vocabSize, embeddingSize, hiddenSize, maxPositionEmbeddings, numLayers, finalNorm } = config;
    const projection = (from: number, to: number): Linear | null =>
      from === to ? null : new Linear(from, to, { bias: false, ...factory });
    this.embed_tokens = new Embedding(vocabSize, embeddingSize, factory);
    this.embed_positions = new OPTLearnedPositionalEmbedding(maxPositionEmbeddings, hiddenSize, factory);
    this.project_out = projection(hiddenSize, embeddingSize);
    this.project_in = projection(embeddingSize, hiddenSize);
    this.final_layer_norm = finalNorm ? new LayerNorm(hiddenSize, factory) : null;
    this.layers = new ModuleList(Array.from({ length: numLayers }, () => new OPTDecoderLayer(config, factory)));
  }

  forward(inputIds: Tensor, context: ForwardContext): Tensor {
    const embedded = this.embed_tokens.forward(inputIds); // [T, E]
    const positions = this.embed_positions.forward(context.positions); // [T, H]
    let hidden = F.add(this.project_in?.forward(embedded) ?? embedded, positions); // [T, H]
    let depth = 0;
    for (const layer of this.layers) {
      context.tap(`hidden_states.${depth++}`, hidden);
      hidden = layer.forward(hidden, context);
    }
    hidden = this.final_layer_norm?.forward(hidden) ?? hidden;
    hidden = this.project_out?.forward(hidden) ?? hidden; // [T, E]
    context.tap(`hidden_states.${depth}`, hidden);
    return hidden;
  }
}

/**
 * A table of positions that starts at row 2: the two rows before it stood for padding in fairseq and are never read.
 */
class OPTLearnedPositionalEmbedding extends Embedding {
  constructor(
    readonly numPositions: number,
    hiddenSize: number,
    factory: Factory,
  ) {
    super(numPositions + 2, hiddenSize, factory);
  }

  override forward(positions: Tensor): Tensor {
    return F.embedding(positions, this.weight.narrow(0, 2, this.numPositions)); // [T, H]
  }
}

class OPTDecoderLayer extends Module {
  readonly self_attn: OPTAttention;
  readonly self_attn_layer_norm: LayerNorm;
  readonly fc1: Linear;
  readonly fc2: Linear;
  readonly final_layer_norm: LayerNorm;
  readonly activation: ActivationKind;
  readonly normFirst: boolean;

  constructor(config: OPTConfig, factory: Factory) {
    super();
    const { hiddenSize, intermediateSize, bias } = config;
    this.activation = config.activation;
    this.normFirst = config.normFirst;
    this.self_attn = new OPTAttention(config, factory);
    this.self_attn_layer_norm = new LayerNorm(hiddenSize, factory);
    this.fc1 = new Linear(hiddenSize, intermediateSize, { bias, ...factory });
    this.fc2 = new Linear(intermediateSize, hiddenSize, { bias, ...factory });
    this.final_layer_norm = new LayerNorm(hiddenSize, factory);
  }

  forward(hidden: Tensor, context: ForwardContext): Tensor {
    const attend = (x: Tensor): Tensor => this.self_attn.forward(x, context);
    const middle = this.#residual(hidden, this.self_attn_layer_norm, attend);
    return this.#residual(middle, this.final_layer_norm, (x) => this.#mlp(x)); // [T, H]
  }

  #residual(x: Tensor, norm: LayerNorm, compute: (x: Tensor) => Tensor): Tensor {
    return this.normFirst ? F.add(x, compute(norm.forward(x))) : norm.forward(F.add(x, compute(x)));
  }

  #mlp(x: Tensor): Tensor {
    return this.fc2.forward(F.activation(this.fc1.forward(x), this.activation));
  }
}

class OPTAttention extends Module {
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly q_proj: Linear;
  readonly out_proj: Linear;
  readonly numHeads: number;
  readonly headDim: number;

  constructor({ hiddenSize, numHeads, headDim, bias }: OPTConfig, factory: Factory) {
    super();
    const projection = (): Linear => new Linear(hiddenSize, hiddenSize, { bias, ...factory });
    this.numHeads = numHeads;
    this.headDim = headDim;
    this.k_proj = projection();
    this.v_proj = projection();
    this.q_proj = projection();
    this.out_proj = projection();
  }

  forward(x: Tensor, context: ForwardContext): Tensor {
    const { numHeads, headDim } = this;
    const q = this.q_proj.forward(x).unflatten(1, [numHeads, headDim]); // [T, N, D]
    const k = this.k_proj.forward(x).unflatten(1, [numHeads, headDim]); // [T, N, D]
    const v = this.v_proj.forward(x).unflatten(1, [numHeads, headDim]); // [T, N, D]
    const out = F.attention(q, k, v, context.step, {
      scale: 1 / Math.sqrt(headDim),
      causal: true,
      cache: context.cache(this, numHeads, headDim),
    });
    return this.out_proj.forward(out.flatten(1)); // [T, N, D] → [T, H]
  }
}

function parse(raw: RawConfig): OPTConfig {
  const reader = new ConfigReader(raw);
  const hiddenSize = reader.count('hidden_size');
  const numHeads = reader.count('num_attention_heads');
  if (hiddenSize % numHeads !== 0) {
    throw reader.refusal('num_attention_heads', numHeads, `a divisor of hidden_size ${hiddenSize}`);
  }
  reader.only('layer_norm_elementwise_affine', [true], 'true');
  // Training, and fairseq's bookkeeping.
  reader.neutral('activation_dropout', 'dropout', 'init_std', 'layerdrop', 'output_projection', 'prefix');
  const normFirst = reader.flag('do_layer_norm_before', { default: true });
  const withoutFinalNorm = reader.flag('_remove_final_layer_norm', { default: false });
  return {
    hiddenSize,
    numHeads,
    normFirst,
    numLayers: reader.count('num_hidden_layers'),
    numKvHeads: numHeads,
    headDim: hiddenSize / numHeads,
    maxPositionEmbeddings: reader.count('max_position_embeddings', { default: 2048 }),
    embeddingSize: reader.count('word_embed_proj_dim', { default: hiddenSize }),
    intermediateSize: reader.count('ffn_dim'),
    activation: reader.activation('activation_function', 'relu'),
    bias: reader.flag('enable_bias', { default: true }),
    finalNorm: normFirst && !withoutFinalNorm,
    ...reader.shared({ tied: true }),
  };
}

export const opt: Architecture<OPTConfig> = {
  modelTypes: ['opt'],
  parse,
  build: (config, factory) => new OPTForCausalLM(config, factory),
  noSplit: ['OPTDecoderLayer'],
  blocksPath: 'model.decoder.layers',
  baseModelPrefix: 'model',
  ignoredTensors: [],
};
