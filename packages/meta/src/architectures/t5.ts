/**
 * T5 (Raffel et al. 2020, JMLR 21; transformers' modeling_t5.py) as a tree on meta: names, shapes and ties, so that it
 * can be counted, mapped and estimated. It does not run yet: there are no ops for attention with a bias by relative
 * position nor for attention over another sequence. Names are the checkpoint's.
 */
import { type DType, NotCompiledError, type Tensor } from '@metashard/core';
import type { CausalLM } from '../causal-lm.js';
import { Module } from '../module.js';
import { ModuleList } from '../module-list.js';
import { Embedding, Linear, RMSNorm } from '../nn/index.js';
import { ConfigReader, type ParsedConfig, type RawConfig } from './config-reader.js';
import type { Architecture } from './registry.js';

interface T5Config extends ParsedConfig {
  readonly numDecoderLayers: number;
  readonly intermediateSize: number;
  readonly rmsNormEps: number;
  /** The MLP multiplies two projections, as in T5 1.1. */
  readonly gated: boolean;
  /** Distances that have a bias of their own. */
  readonly relativeBuckets: number;
}

interface Factory {
  dtype: DType;
}

/** What these modules compute is not implemented; see the first comment. */
abstract class UnrunModule extends Module {
  forward(): Tensor {
    throw new NotCompiledError(
      `${this.constructor.name}: expected ops for relative position bias and cross-attention to run T5, got none`,
      { hint: 'its parameters, sizes and device maps can be computed from the tree: see metashard/accelerate' },
    );
  }
}

class T5ForConditionalGeneration extends UnrunModule implements CausalLM {
  readonly shared: Embedding;
  readonly encoder: T5Stack;
  readonly decoder: T5Stack;
  readonly lm_head: Linear;

  constructor(config: T5Config, factory: Factory) {
    super();
    this.shared = new Embedding(config.vocabSize, config.hiddenSize, factory);
    this.encoder = new T5Stack(config, { layers: config.numLayers, decoder: false }, factory);
    this.decoder = new T5Stack(config, { layers: config.numDecoderLayers, decoder: true }, factory);
    this.lm_head = new Linear(config.hiddenSize, config.vocabSize, { bias: false, ...factory });
    this.encoder.embed_tokens.weight = this.shared.weight;
    this.decoder.embed_tokens.weight = this.shared.weight;
    if (config.tieWordEmbeddings) this.lm_head.weight = this.shared.weight;
  }
}

class T5Stack extends UnrunModule {
  readonly embed_tokens: Embedding;
  readonly block: ModuleList<T5Block>;
  readonly final_layer_norm: RMSNorm;

  constructor(config: T5Config, { layers, decoder }: { layers: number; decoder: boolean }, factory: Factory) {
    super();
    const { vocabSize, hiddenSize, rmsNormEps: eps } = config;
    this.embed_tokens = new Embedding(vocabSize, hiddenSize, factory);
    // The first block's bias by relative position serves all blocks.
    const blocks = Array.from({ length: layers }, (_, i) => new T5Block(config, { decoder, bias: i === 0 }, factory));
    this.block = new ModuleList(blocks);
    this.final_layer_norm = new RMSNorm(hiddenSize, { eps, ...factory });
  }
}

class T5Block extends UnrunModule {
  readonly layer: ModuleList<Module>;

  constructor(config: T5Config, { decoder, bias }: { decoder: boolean; bias: boolean }, factory: Factory) {
    super();
    const cross = decoder ? [new T5LayerCrossAttention(config, factory)] : [];
    this.layer = new ModuleList<Module>([
      new T5LayerSelfAttention(config, bias, factory),
      ...cross,
      new T5LayerFF(config, factory),
    ]);
  }
}

class T5LayerSelfAttention extends UnrunModule {
  readonly SelfAttention: T5Attention;
  readonly layer_norm: RMSNorm;

  constructor(config: T5Config, bias: boolean, factory: Factory) {
    super();
    this.SelfAttention = new T5Attention(config, bias, factory);
    this.layer_norm = new RMSNorm(config.hiddenSize, { eps: config.rmsNormEps, ...factory });
  }
}

class T5LayerCrossAttention extends UnrunModule {
  readonly EncDecAttention: T5Attention;
  readonly layer_norm: RMSNorm;

  constructor(config: T5Config, factory: Factory) {
    super();
    this.EncDecAttention = new T5Attention(config, false, factory);
    this.layer_norm = new RMSNorm(config.hiddenSize, { eps: config.rmsNormEps, ...factory });
  }
}

class T5Attention extends UnrunModule {
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly o: Linear;
  /** [buckets, heads]; null in all blocks but the first. */
  readonly relative_attention_bias: Embedding | null;

  constructor({ hiddenSize, numHeads, headDim, relativeBuckets }: T5Config, bias: boolean, factory: Factory) {
    super();
    const inner = numHeads * headDim;
    const plain = { bias: false, ...factory };
    this.q = new Linear(hiddenSize, inner, plain);
    this.k = new Linear(hiddenSize, inner, plain);
    this.v = new Linear(hiddenSize, inner, plain);
    this.o = new Linear(inner, hiddenSize, plain);
    this.relative_attention_bias = bias ? new Embedding(relativeBuckets, numHeads, factory) : null;
  }
}

class T5LayerFF extends UnrunModule {
  readonly DenseReluDense: T5DenseActDense | T5DenseGatedActDense;
  readonly layer_norm: RMSNorm;

  constructor(config: T5Config, factory: Factory) {
    super();
    this.DenseReluDense = config.gated
      ? new T5DenseGatedActDense(config, factory)
      : new T5DenseActDense(config, factory);
    this.layer_norm = new RMSNorm(config.hiddenSize, { eps: config.rmsNormEps, ...factory });
  }
}

class T5DenseActDense extends UnrunModule {
  readonly wi: Linear;
  readonly wo: Linear;

  constructor({ hiddenSize, intermediateSize }: T5Config, factory: Factory) {
    super();
    this.wi = new Linear(hiddenSize, intermediateSize, { bias: false, ...factory });
    this.wo = new Linear(intermediateSize, hiddenSize, { bias: false, ...factory });
  }
}

class T5DenseGatedActDense extends UnrunModule {
  readonly wi_0: Linear;
  readonly wi_1: Linear;
  readonly wo: Linear;

  constructor({ hiddenSize, intermediateSize }: T5Config, factory: Factory) {
    super();
    this.wi_0 = new Linear(hiddenSize, intermediateSize, { bias: false, ...factory });
    this.wi_1 = new Linear(hiddenSize, intermediateSize, { bias: false, ...factory });
    this.wo = new Linear(intermediateSize, hiddenSize, { bias: false, ...factory });
  }
}

function parse(raw: RawConfig): T5Config {
  const reader = new ConfigReader(raw, { encoderDecoder: true });
  const projection = reader.word('feed_forward_proj', { default: 'relu' });
  const numHeads = reader.count(['num_heads', 'num_attention_heads'], { default: 8 });
  const numLayers = reader.count(['num_layers', 'num_hidden_layers'], { default: 6 });
  // Derived from feed_forward_proj; how it is trained; what generation starts from.
  reader.neutral('is_gated_act', 'dense_act_fn', 'dropout_rate', 'initializer_factor', 'n_positions', 'output_past');
  reader.neutral('decoder_start_token_id', 'relative_attention_max_distance', 'scale_decoder_outputs');
  return {
    numHeads,
    numLayers,
    numDecoderLayers: reader.count('num_decoder_layers', { default: numLayers }),
    hiddenSize: reader.count(['d_model', 'hidden_size'], { default: 512 }),
    numKvHeads: numHeads,
    headDim: reader.count(['d_kv', 'head_dim'], { default: 64 }),
    maxPositionEmbeddings: null,
    intermediateSize: reader.count('d_ff', { default: 2048 }),
    rmsNormEps: reader.number('layer_norm_epsilon', { default: 1e-6 }),
    gated: projection.startsWith('gated-'),
    relativeBuckets: reader.count('relative_attention_num_buckets', { default: 32 }),
    ...reader.shared({ tied: true, vocabSize: 32_128 }),
  };
}

export const t5: Architecture<T5Config> = {
  modelTypes: ['t5'],
  parse,
  build: (config, factory) => new T5ForConditionalGeneration(config, factory),
  noSplit: ['T5Block'],
  blocksPath: 'decoder.block',
  baseModelPrefix: '',
  ignoredTensors: [/(^|\.)EncDecAttention\.relative_attention_bias\.weight$/],
  keepInFloat: ['wo'],
};
