/**
 * BLOOM (Workshop et al. 2022, arXiv 2211.05100; transformers' modeling_bloom.py). Unusual: ALiBi in place of positions
 * (Press et al. 2022), a LayerNorm after the embeddings, q, k and v interleaved per head in one projection, a tied
 * head. Names are the checkpoint's. Dims: T tokens, H hidden, N heads, D head size, V vocabulary.
 */
import { type DType, F, type Tensor } from '@metashard/core';
import type { CausalLM, CausalLMInputs } from '../causal-lm.js';
import { ConstantTensor } from '../constant-tensor.js';
import type { ForwardContext } from '../forward-context.js';
import { Module } from '../module.js';
import { ModuleList } from '../module-list.js';
import { Embedding, LayerNorm, Linear } from '../nn/index.js';
import { ConfigReader, type ParsedConfig, type RawConfig } from './config-reader.js';
import type { Architecture } from './registry.js';

interface BloomConfig extends ParsedConfig {
  readonly layerNormEpsilon: number;
  /** The residual is taken after the LayerNorm instead of before it. */
  readonly residualPostLayerNorm: boolean;
}

interface Factory {
  dtype: DType;
}

class BloomForCausalLM extends Module implements CausalLM {
  readonly transformer: BloomModel;
  readonly lm_head: Linear;

  constructor(config: BloomConfig, factory: Factory) {
    super();
    this.transformer = new BloomModel(config, factory);
    this.lm_head = new Linear(config.hiddenSize, config.vocabSize, { bias: false, ...factory });
    if (config.tieWordEmbeddings) this.lm_head.weight = this.transformer.word_embeddings.weight;
  }

  forward({ inputIds, outputRows }: CausalLMInputs, context: ForwardContext): Tensor {
    const hidden = this.transformer.forward(inputIds, context); // [T, H]
    return this.lm_head.forward(F.selectRows(hidden, outputRows)); // [outputs, V]
  }
}

class BloomModel extends Module {
  readonly word_embeddings: Embedding;
  readonly word_embeddings_layernorm: LayerNorm;
  readonly h: ModuleList<BloomBlock>;
  readonly ln_f: LayerNorm;

  constructor(config: BloomConfig, factory: Factory) {
    super();
    const norm = { eps: config.layerNormEpsilon, ...factory };
    const slopes = new ConstantTensor(alibiSlopes(config.numHeads));
    this.word_embeddings = new Embedding(config.vocabSize, config.hiddenSize, factory);
    this.word_embeddings_layernorm = new LayerNorm(config.hiddenSize, norm);
    this.h = new ModuleList(Array.from({ length: config.numLayers }, () => new BloomBlock(config, slopes, factory)));
    this.ln_f = new LayerNorm(config.hiddenSize, norm);
  }

  forward(inputIds: Tensor, context: ForwardContext): Tensor {
    let hidden = this.word_embeddings_layernorm.forward(this.word_embeddings.forward(inputIds)); // [T, H]
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

class BloomBlock extends Module {
  readonly input_layernorm: LayerNorm;
  readonly self_attention: BloomAttention;
  readonly post_attention_layernorm: LayerNorm;
  readonly mlp: BloomMLP;
  readonly residualPostLayerNorm: boolean;

  constructor(config: BloomConfig, slopes: Tensor, factory: Factory) {
    super();
    const norm = { eps: config.layerNormEpsilon, ...factory };
    this.residualPostLayerNorm = config.residualPostLayerNorm;
    this.input_layernorm = new LayerNorm(config.hiddenSize, norm);
    this.self_attention = new BloomAttention(config, slopes, factory);
    this.post_attention_layernorm = new LayerNorm(config.hiddenSize, norm);
    this.mlp = new BloomMLP(config, factory);
  }

  forward(hidden: Tensor, context: ForwardContext): Tensor {
    const attentionInput = this.input_layernorm.forward(hidden);
    const attended = this.self_attention.forward(attentionInput, context);
    const middle = F.add(this.residualPostLayerNorm ? attentionInput : hidden, attended);
    const mlpInput = this.post_attention_layernorm.forward(middle);
    return F.add(this.residualPostLayerNorm ? mlpInput : middle, this.mlp.forward(mlpInput)); // [T, H]
  }
}

class BloomAttention extends Module {
  readonly query_key_value: Linear;
  readonly dense: Linear;
  readonly numHeads: number;
  readonly headDim: number;
  declare readonly alibi_slopes: Tensor;

  constructor({ hiddenSize, numHeads, headDim }: BloomConfig, slopes: Tensor, factory: Factory) {
    super();
    this.numHeads = numHeads;
    this.headDim = headDim;
    this.query_key_value = new Linear(hiddenSize, 3 * hiddenSize, factory);
    this.dense = new Linear(hiddenSize, hiddenSize, factory);
    this.registerBuffer('alibi_slopes', slopes, { persistent: false });
  }

  forward(x: Tensor, context: ForwardContext): Tensor {
    const { numHeads, headDim } = this;
    const fused = this.query_key_value.forward(x).unflatten(1, [numHeads, 3, headDim]); // [T, N, 3, D]
    const [q, k, v] = [fused.select(2, 0), fused.select(2, 1), fused.select(2, 2)]; // [T, N, D] each
    const out = F.attention(q, k, v, context.step, {
      scale: 1 / Math.sqrt(headDim),
      causal: true,
      alibiSlopes: this.alibi_slopes,
      cache: context.cache(this, numHeads, headDim),
    });
    return this.dense.forward(out.flatten(1)); // [T, N, D] → [T, H]
  }
}

class BloomMLP extends Module {
  readonly dense_h_to_4h: Linear;
  readonly dense_4h_to_h: Linear;

  constructor({ hiddenSize }: BloomConfig, factory: Factory) {
    super();
    this.dense_h_to_4h = new Linear(hiddenSize, 4 * hiddenSize, factory);
    this.dense_4h_to_h = new Linear(4 * hiddenSize, hiddenSize, factory);
  }

  forward(x: Tensor): Tensor {
    return this.dense_4h_to_h.forward(F.gelu(this.dense_h_to_4h.forward(x), { approximate: 'tanh' }));
  }
}

/**
 * ALiBi's slopes (Press et al. 2022, and its authors' rule for other head counts): with n the largest power of two ≤
 * heads, 2^(-8·i/n) for i = 1 … n, then every second slope of 2n heads. Rounded to float32 as transformers does.
 */
export function alibiSlopes(heads: number): Float32Array {
  const n = 2 ** Math.floor(Math.log2(heads));
  const base = Math.fround(2 ** (-8 / n));
  const extraBase = Math.fround(2 ** (-4 / n));
  return Float32Array.from({ length: heads }, (_, i) => (i < n ? base ** (i + 1) : extraBase ** (2 * (i - n) + 1)));
}

function parse(raw: RawConfig): BloomConfig {
  const reader = new ConfigReader(raw);
  const hiddenSize = reader.count(['hidden_size', 'n_embed']);
  const numHeads = reader.count(['n_head', 'num_attention_heads']);
  if (hiddenSize % numHeads !== 0) throw reader.refusal('n_head', numHeads, `a divisor of hidden_size ${hiddenSize}`);
  // Of Megatron's training: how the kernels were fused and split, not what they compute.
  reader.neutral(
    'attention_softmax_in_fp32',
    'bias_dropout_fusion',
    'masked_softmax_fusion',
    'offset_alibi',
    'seq_length',
  );
  reader.neutral('skip_bias_add', 'skip_bias_add_qkv', 'slow_but_exact', 'unk_token_id', 'n_inner');
  return {
    hiddenSize,
    numHeads,
    numLayers: reader.count(['n_layer', 'num_hidden_layers']),
    numKvHeads: numHeads,
    headDim: hiddenSize / numHeads,
    maxPositionEmbeddings: null,
    layerNormEpsilon: reader.number('layer_norm_epsilon', { default: 1e-5 }),
    residualPostLayerNorm: reader.flag('apply_residual_connection_post_layernorm', { default: false }),
    ...reader.shared({ tied: true }),
  };
}

export const bloom: Architecture<BloomConfig> = {
  modelTypes: ['bloom'],
  parse,
  build: (config, factory) => new BloomForCausalLM(config, factory),
  noSplit: ['BloomBlock'],
  blocksPath: 'transformer.h',
  baseModelPrefix: 'transformer',
  ignoredTensors: [],
};
