/**
 * Shapes of the models that the benchmarks generate: config.json as the published checkpoints have it. No weights, no
 * tokenizers.
 */

const bloom = (hidden_size) => ({
  architectures: ['BloomForCausalLM'],
  model_type: 'bloom',
  vocab_size: 250880,
  hidden_size,
  n_layer: 24,
  n_head: 16,
  layer_norm_epsilon: 1e-5,
  tie_word_embeddings: true,
  bos_token_id: 1,
  eos_token_id: 2,
  pad_token_id: 3,
  torch_dtype: 'float16',
});

/**
 * By name: BLOOM-560M and BLOOM-1.7B (Workshop et al. 2022), TinyLlama's shape of a Llama of 1.1 billion parameters.
 */
export const MODEL_CONFIGS = {
  'bloom-560m': bloom(1024),
  'bloom-1b7': bloom(2048),
  'llama-1b1': {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: 32000,
    hidden_size: 2048,
    num_hidden_layers: 22,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    intermediate_size: 5632,
    hidden_act: 'silu',
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: false,
    bos_token_id: 1,
    eos_token_id: 2,
    torch_dtype: 'float16',
  },
};
