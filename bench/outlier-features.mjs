/**
 * Plants outlier features into the weights of a generated model, so that every 8-bit linear meets outlier columns in
 * every row, as those of large trained models do (Dettmers et al. 2022, section 4; Sun et al. 2024, "Massive
 * Activations": the same few features of the hidden states, large for every token). For architectures named as BLOOM's
 * and Llama's; whether a model's linears do meet them is measured by outlier-columns.mjs, not assumed.
 *
 * - The embedding (or its norm's bias, where it has one) writes a large constant into a few features of the hidden
 *   states. It dominates them through all blocks, hence every norm gives these columns about sqrt(hidden size /
 *   features), which the norm's weight halves: about 12. The final norm's weight takes them out of the logits.
 * - Linears behind attention and the MLP's activation have no norm before them: a few rows of the values' projection
 *   and of the MLP's first linear read the features, which makes a constant of that size in their output. Attention
 *   keeps it (its weights sum to 1), GELU too; Llama's gate and up give 4 each, and SiLU(4) × 4 = 15.7.
 */
import { nn } from 'metashard';

const RESIDUAL = 200;
const NORM_WEIGHT = 0.5;
const OUTLIER = 12;
const GATED = 4;

/** Features of a width: so many per 4096, at least one unless none are asked for. */
export const featureCount = (width, perFourThousand) =>
  Math.max(perFourThousand > 0 ? 1 : 0, Math.round((perFourThousand * width) / 4096));

/** `count` indices below `width`, evenly apart. */
const spread = (width, count) => Array.from({ length: count }, (_, i) => Math.floor(((i + 0.5) * width) / count));

/**
 * Which rows of a linear make a column of the next linear's input, and how large: by the linear's name. BLOOM's fused
 * projection has rows [heads, 3, head size]; a row of Llama's values feeds a column in each head of its group.
 */
const FEEDERS = {
  query_key_value: ({ numHeads, headDim }, outliers) => ({
    rows: spread(numHeads * headDim, featureCount(numHeads * headDim, outliers)).map(
      (column) => (Math.floor(column / headDim) * 3 + 2) * headDim + (column % headDim),
    ),
    value: OUTLIER,
  }),
  v_proj: ({ numHeads, numKvHeads, headDim }, outliers) => {
    const columns = featureCount(numHeads * headDim, outliers);
    const rows = columns === 0 ? 0 : Math.max(1, Math.round((columns * numKvHeads) / numHeads));
    return { rows: spread(numKvHeads * headDim, rows), value: OUTLIER };
  },
  dense_h_to_4h: (_, outliers, width) => ({ rows: spread(width, featureCount(width, outliers)), value: OUTLIER }),
  gate_proj: (_, outliers, width) => ({ rows: spread(width, featureCount(width, outliers)), value: GATED }),
  up_proj: (_, outliers, width) => ({ rows: spread(width, featureCount(width, outliers)), value: GATED }),
};

/** Adds to each tensor's `planted` the elements { index, value } that make the features; see make-model.mjs. */
export function plantFeatures(tensors, config, outliers) {
  const features = spread(config.hiddenSize, featureCount(config.hiddenSize, outliers));
  if (features.length === 0) return;
  plantSource(tensors, features);
  const norms = tensors.filter(({ module, name }) => isNorm(module) && name.endsWith('.weight'));
  for (const { path, planted } of norms.filter(({ path }) => !/embeddings?_layernorm$/.test(path))) {
    const value = /\.\d+\./.test(path) ? NORM_WEIGHT : 0;
    planted.push(...features.map((index) => ({ index, value })));
  }
  const input = NORM_WEIGHT * Math.sqrt(config.hiddenSize / features.length);
  for (const { path, shape, planted } of tensors.filter(({ name }) => name.endsWith('.weight'))) {
    const feeder = FEEDERS[path.split('.').at(-1)];
    if (feeder === undefined) continue;
    const { rows, value } = feeder(config, outliers, shape[0]);
    const weight = value / (input * features.length);
    for (const row of rows)
      planted.push(...features.map((index) => ({ index: row * shape[1] + index, value: weight })));
  }
}

const isNorm = (module) => module instanceof nn.LayerNorm || module instanceof nn.RMSNorm;

/** The constant in the hidden states: from the embedding's norm where it has a bias, else from the embedding. */
function plantSource(tensors, features) {
  const bias = tensors.find(({ path, name }) => /embeddings?_layernorm$/.test(path) && name.endsWith('.bias'));
  const table = tensors.find(({ module }) => module instanceof nn.Embedding);
  const { shape, planted } = bias ?? table;
  const rows = bias === undefined ? shape[0] : 1;
  for (let row = 0; row < rows; row++) {
    planted.push(...features.map((index) => ({ index: row * shape.at(-1) + index, value: RESIDUAL })));
  }
}
