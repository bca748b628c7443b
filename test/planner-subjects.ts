/** What the planner's tests plan: BLOOM-176B's config, and GPUs of one size. */
export const BLOOM_176B = {
  model_type: 'bloom',
  hidden_size: 14336,
  n_layer: 70,
  n_head: 112,
  vocab_size: 250880,
  layer_norm_epsilon: 1e-5,
  dtype: 'bfloat16',
  tie_word_embeddings: true,
};
export const gpus = (count: number, bytes: number) =>
  Array.from({ length: count }, (_, i) => ({
    name: `cuda:${i}`,
    emulated: false,
    budgetBytes: bytes,
    reserveBytes: 0,
  }));
