/**
 * The operations of metashard: names, codes, inputs, attributes, shape rules and scratch bounds, in one table. One long
 * file, because a table is read as a whole. It is the TypeScript twin of native/include/metashard/ops.def (a test
 * compares the two). How an op computes is written once per backend, in a file of its name.
 *
 * Activations are token-major, `[tokens, features]`, float32 unless said otherwise. An input with `?` may be absent
 * (null). float* means float32, float16 or bfloat16. Accumulation is in float32 or wider everywhere.
 */
import { DTYPES, type DType } from './dtype.js';
import { DtypeError, ShapeError } from './errors.js';
import { type Dim, formatDims, sameDims } from './shape.js';

/** How a tensor's elements lie in memory: rows with strides, or the packed int8 blocks of backend.h. */
export type Layout = 'strided' | 'packed_int8';

export interface TensorSpec {
  readonly dims: readonly Dim[];
  readonly dtype: DType;
  readonly layout?: Layout;
}

type Inputs = readonly (TensorSpec | null)[];

export interface OpSignature {
  readonly code: number;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** Numbers, in this order; booleans are 0 and 1, enums the index in their list (ACTIVATION_KINDS, …). */
  readonly attributes: readonly string[];
  /** Checks the inputs and gives the outputs' specs. Throws ShapeError or DtypeError. */
  readonly infer: (inputs: Inputs, attributes: readonly number[]) => TensorSpec[];
  /** Upper bound of device scratch in bytes for inputs whose dims are all numbers. Absent: none. */
  readonly scratch?: (inputs: Inputs) => number;
  /**
   * The output may lie where an input of its shape and dtype lies: every element is read before its place is written.
   */
  readonly inPlace?: true;
}

/**
 * Kinds of the `activation` op, by index. `gelu` is erf-exact, `gelu_tanh` the tanh approximation (Hendrycks & Gimpel
 * 2016; BLOOM's and GPT-2's gelu_new), `quick_gelu` x·σ(1.702x).
 */
export const ACTIVATION_KINDS = [
  'relu',
  'gelu',
  'gelu_tanh',
  'quick_gelu',
  'silu',
  'tanh',
  'sigmoid',
  'relu_squared',
] as const;
export type ActivationKind = (typeof ACTIVATION_KINDS)[number];

/** Tokens per block of the paged KV cache. */
export const KV_BLOCK_SIZE = 16;

/** Elements of a cached row of `headDim` values: of int8, its float32 scale lies behind them. */
export const kvRowElements = (dtype: DType, headDim: number): number => headDim + (dtype === 'int8' ? 4 : 0);

const FLOATS: readonly DType[] = ['float32', 'float16', 'bfloat16'];
const F32: readonly DType[] = ['float32'];
const I32: readonly DType[] = ['int32'];
const I8: readonly DType[] = ['int8'];

/** Rounds up to a multiple. */
export const roundUp = (value: number, multiple: number): number => Math.ceil(value / multiple) * multiple;

/**
 * Bytes of an int8 matrix [rows, columns] in the packed layout: 16-row blocks of 64-column tiles, each block followed
 * by 16 int32 row sums.
 */
export function packedInt8Bytes(rows: number, columns: number): number {
  return Math.ceil(rows / 16) * (16 * roundUp(columns, 64) + 64);
}

/** Checks one input's rank and dtype; `name` and `op` go into the error. */
function need(
  op: string,
  inputs: Inputs,
  index: number,
  name: string,
  rank: number,
  dtypes: readonly DType[],
): TensorSpec {
  const spec = inputs[index];
  if (spec === null || spec === undefined) throw new ShapeError(`${op}: expected an input ${name}, got none`);
  if (spec.dims.length !== rank) {
    throw new ShapeError(`${op}: expected ${name} of rank ${rank}, got ${formatDims(spec.dims)}`);
  }
  if (!dtypes.includes(spec.dtype)) {
    throw new DtypeError(`${op}: expected ${name} as ${dtypes.join(' or ')}, got ${spec.dtype}`);
  }
  return spec;
}

function optional(
  op: string,
  inputs: Inputs,
  index: number,
  name: string,
  dims: readonly Dim[],
  dtypes: readonly DType[],
): void {
  const spec = inputs[index];
  if (spec === null || spec === undefined) return;
  needDims(op, name, need(op, inputs, index, name, dims.length, dtypes), dims);
}

function needDims(op: string, name: string, spec: TensorSpec, dims: readonly Dim[]): void {
  if (!sameDims(spec.dims, dims)) {
    throw new ShapeError(`${op}: expected ${name} of shape ${formatDims(dims)}, got ${formatDims(spec.dims)}`);
  }
}

const dim = (spec: TensorSpec, index: number): Dim => spec.dims[index] as Dim;
const size = (spec: TensorSpec | null | undefined, index: number): number => spec?.dims[index] as number;
const f32 = (...dims: Dim[]): TensorSpec => ({ dims, dtype: 'float32' });

function inferLinear(op: string, inputs: Inputs): TensorSpec[] {
  const x = need(op, inputs, 0, 'x', 2, F32);
  const weight = need(op, inputs, 1, 'weight', 2, FLOATS);
  needDims(op, 'weight', weight, [dim(weight, 0), dim(x, 1)]);
  optional(op, inputs, 2, 'bias', [dim(weight, 0)], FLOATS);
  return [f32(dim(x, 0), dim(weight, 0))];
}

function inferInt8Linear(op: string, inputs: Inputs): TensorSpec[] {
  const x = need(op, inputs, 0, 'x', 2, F32);
  const [rows, K] = [dim(x, 0), dim(x, 1)];
  needDims(op, 'CA', need(op, inputs, 1, 'CA', 2, I8), [rows, K]);
  needDims(op, 'SCA', need(op, inputs, 2, 'SCA', 1, F32), [rows]);
  needDims(op, 'outlier_cols', need(op, inputs, 3, 'outlier_cols', 1, I32), [(K as number) + 1]);
  const CB = need(op, inputs, 4, 'CB', 2, I8);
  needDims(op, 'CB', CB, [dim(CB, 0), K]);
  needDims(op, 'SCB', need(op, inputs, 5, 'SCB', 1, F32), [dim(CB, 0)]);
  optional(op, inputs, 6, 'bias', [dim(CB, 0)], FLOATS);
  return [f32(rows, dim(CB, 0))];
}

function inferAttention(op: string, inputs: Inputs): TensorSpec[] {
  const q = need(op, inputs, 0, 'q', 3, F32);
  const k = need(op, inputs, 1, 'k', 3, F32);
  const [rows, N, D, KV] = [dim(q, 0), dim(q, 1), dim(q, 2), dim(k, 1)];
  needDims(op, 'k', k, [rows, KV, D]);
  needDims(op, 'v', need(op, inputs, 2, 'v', 3, F32), [rows, KV, D]);
  if (typeof N === 'number' && typeof KV === 'number' && N % KV !== 0) {
    throw new ShapeError(`${op}: expected a number of heads that ${KV} kv heads divide, got ${N}`);
  }
  const starts = need(op, inputs, 5, 'query_starts', 1, I32);
  const sequences = dim(starts, 0);
  needDims(op, 'query_lengths', need(op, inputs, 6, 'query_lengths', 1, I32), [sequences]);
  needDims(op, 'context_lengths', need(op, inputs, 7, 'context_lengths', 1, I32), [sequences]);
  if (inputs[3] != null || inputs[4] != null) {
    const cache = need(op, inputs, 3, 'cache_k', 4, [...FLOATS, 'int8']);
    needDims(op, 'cache_k', cache, [dim(cache, 0), KV, dim(cache, 2), kvRowElements(cache.dtype, D as number)]);
    needDims(op, 'cache_v', need(op, inputs, 4, 'cache_v', 4, [cache.dtype]), cache.dims);
    const tables = need(op, inputs, 8, 'block_tables', 2, I32);
    needDims(op, 'block_tables', tables, [sequences, dim(tables, 1)]);
  }
  optional(op, inputs, 9, 'alibi_slopes', [N], F32);
  return [f32(rows, N, D)];
}

function inferSame(op: string, inputs: Inputs): TensorSpec[] {
  const a = inputs[0];
  if (a == null) throw new ShapeError(`${op}: expected an input a, got none`);
  needDims(op, 'b', need(op, inputs, 1, 'b', a.dims.length, F32), a.dims);
  return [{ dims: a.dims, dtype: 'float32' }];
}

export const OPS = {
  /** Row `ids[t]` of `table [V, H]`, as float32. ids outside 0…V-1 are refused. */
  embedding: {
    code: 1,
    inputs: ['ids', 'table'],
    outputs: ['out'],
    attributes: [],
    infer: (inputs) => {
      const ids = need('embedding', inputs, 0, 'ids', 1, I32);
      return [f32(dim(ids, 0), dim(need('embedding', inputs, 1, 'table', 2, FLOATS), 1))];
    },
  },
  /** (x - mean) / sqrt(var + epsilon) · weight + bias over the last dimension, biased variance (Ba et al. 2016). */
  layer_norm: {
    code: 2,
    inputs: ['x', 'weight', 'bias?'],
    outputs: ['out'],
    attributes: ['epsilon'],
    infer: (inputs) => {
      const x = need('layer_norm', inputs, 0, 'x', 2, F32);
      needDims('layer_norm', 'weight', need('layer_norm', inputs, 1, 'weight', 1, FLOATS), [dim(x, 1)]);
      optional('layer_norm', inputs, 2, 'bias', [dim(x, 1)], FLOATS);
      return [f32(...x.dims)];
    },
  },
  /** x / sqrt(mean(x²) + epsilon) · weight over the last dimension (Zhang & Sennrich 2019). */
  rms_norm: {
    code: 3,
    inputs: ['x', 'weight'],
    outputs: ['out'],
    attributes: ['epsilon'],
    infer: (inputs) => {
      const x = need('rms_norm', inputs, 0, 'x', 2, F32);
      needDims('rms_norm', 'weight', need('rms_norm', inputs, 1, 'weight', 1, FLOATS), [dim(x, 1)]);
      return [f32(...x.dims)];
    },
  },
  /** x [tokens, K] · weightᵀ [N, K] + bias [N]. */
  linear: {
    code: 4,
    inputs: ['x', 'weight', 'bias?'],
    outputs: ['out'],
    attributes: [],
    infer: (inputs) => inferLinear('linear', inputs),
  },
  /**
   * LLM.int8() row quantization (Dettmers et al. 2022, section 3). With threshold τ > 0 an element is an outlier unless
   * |x| < τ (so NaN is one, too).
   * SCA[t] = max |x| over the row's non-outlier elements; CA = round-half-even(x · 127 / SCA), 0 for outliers and where
   * SCA is 0.
   * per_row 0 (published): the whole column of an outlier is 0 in CA; outlier_cols = [count, ascending columns…] over
   * all rows.
   * per_row 1: only the elements themselves are 0. τ = 0: no outliers, count 0; a NaN in the row makes SCA NaN.
   */
  int8_quantize: {
    code: 5,
    inputs: ['x'],
    outputs: ['CA', 'SCA', 'outlier_cols'],
    attributes: ['threshold', 'per_row'],
    infer: (inputs) => {
      const x = need('int8_quantize', inputs, 0, 'x', 2, F32);
      return [{ dims: x.dims, dtype: 'int8' }, f32(dim(x, 0)), { dims: [(dim(x, 1) as number) + 1], dtype: 'int32' }];
    },
    scratch: (inputs) => roundUp(size(inputs[0], 1), 64) + 64,
  },
  /**
   * out = (CA · CBᵀ) · SCA · SCB / 127² + Σ over outliers x[t,k] · CB[n,k] · SCB[n] / 127 + bias, one rounding to
   * float32 at the end.
   * Outliers are the columns of outlier_cols (per_row 0), or of those the elements with not |x| < threshold (per_row
   * 1).
   * CB may be strided [N, K] or packed.
   */
  int8_linear: {
    code: 6,
    inputs: ['x', 'CA', 'SCA', 'outlier_cols', 'CB', 'SCB', 'bias?'],
    outputs: ['out'],
    attributes: ['threshold', 'per_row'],
    infer: (inputs) => inferInt8Linear('int8_linear', inputs),
    // Activations as panels (rows to a multiple of 48), and the weight packed on the fly where it comes strided.
    scratch: (inputs) => {
      const [rows, K, N] = [size(inputs[0], 0), size(inputs[0], 1), size(inputs[4], 0)];
      const panels = roundUp(rows, 48) * roundUp(K, 64) + 4096;
      return panels + (inputs[4]?.layout === 'packed_int8' ? 0 : roundUp(packedInt8Bytes(N, K), 64));
    },
  },
  /** CA [M, K] · CBᵀ [N, K], exact in int32 (K up to 133,144). CB strided or packed. */
  int8_matmul: {
    code: 7,
    inputs: ['CA', 'CB'],
    outputs: ['accumulators'],
    attributes: [],
    infer: (inputs) => {
      const CA = need('int8_matmul', inputs, 0, 'CA', 2, I8);
      const CB = need('int8_matmul', inputs, 1, 'CB', 2, I8);
      needDims('int8_matmul', 'CB', CB, [dim(CB, 0), dim(CA, 1)]);
      return [{ dims: [dim(CA, 0), dim(CB, 0)], dtype: 'int32' }];
    },
    scratch: (inputs) => {
      const [rows, K, N] = [size(inputs[0], 0), size(inputs[0], 1), size(inputs[1], 0)];
      const panels = roundUp(rows, 48) * roundUp(K, 64) + 4096;
      return panels + (inputs[1]?.layout === 'packed_int8' ? 0 : roundUp(packedInt8Bytes(N, K), 64));
    },
  },
  /**
   * Row-wise absmax quantization of a weight: SCB[n] = max_k |w[n,k]|, CB = round-half-even(w · (127 / SCB)), a zero
   * row gives zeros.
   * The output CB may be strided or packed (the caller's tensor says which). float16_first: weights are rounded to
   * float16 before, and the scale is taken as fl(fl(1/SCB)·127): bitsandbytes' files bit for bit.
   */
  quantize_weight: {
    code: 8,
    inputs: ['weight'],
    outputs: ['CB', 'SCB'],
    attributes: ['float16_first'],
    infer: (inputs) => {
      const weight = need('quantize_weight', inputs, 0, 'weight', 2, FLOATS);
      return [{ dims: weight.dims, dtype: 'int8' }, f32(dim(weight, 0))];
    },
  },
  /** CB · SCB[n] / 127 as float32. CB strided or packed. */
  dequantize_weight: {
    code: 9,
    inputs: ['CB', 'SCB'],
    outputs: ['weight'],
    attributes: [],
    infer: (inputs) => {
      const CB = need('dequantize_weight', inputs, 0, 'CB', 2, I8);
      needDims('dequantize_weight', 'SCB', need('dequantize_weight', inputs, 1, 'SCB', 1, F32), [dim(CB, 0)]);
      return [f32(...CB.dims)];
    },
  },
  /** Strided int8 [N, K] → the packed layout. */
  pack_int8: {
    code: 10,
    inputs: ['CB'],
    outputs: ['packed'],
    attributes: [],
    infer: (inputs) => [{ dims: need('pack_int8', inputs, 0, 'CB', 2, I8).dims, dtype: 'int8', layout: 'packed_int8' }],
  },
  unpack_int8: {
    code: 11,
    inputs: ['packed'],
    outputs: ['CB'],
    attributes: [],
    infer: (inputs) => [{ dims: need('unpack_int8', inputs, 0, 'packed', 2, I8).dims, dtype: 'int8' }],
  },
  /**
   * Scaled dot-product attention of a ragged batch: out [tokens, N, D]. q [tokens, N, D], k and v [tokens, KV, D] may
   * be strided views (last stride 1). Sequence s owns rows query_starts[s] … + query_lengths[s]; they are its newest
   * tokens, positions context_lengths[s] - query_lengths[s] … context_lengths[s] - 1. With caches [blocks, KV,
   * block_size, D] the op first writes k and v there (token p of s lies in block block_tables[s][p / block_size], row p
   * % block_size) and then attends over positions 0 … context_lengths[s] - 1; without caches over the rows of this call
   * (context_lengths = query_lengths).
   * causal: key position ≤ query position. window w > 0: query position - key position < w. alibi_slopes [N]: adds
   * slope · (key - query position) (Press et al. 2022). softcap c > 0: c · tanh(score / c) before the mask. Sequences
   * with query_lengths 0 are skipped.
   * An int8 cache is [blocks, KV, block_size, D + 4]: a row is D values rint(x · (127 / absmax)) and, behind them, the
   * float32 absmax / 127 (NaN where the row has a NaN or an infinity; values 0 where absmax is below 1e-36). The CPU
   * backend has it.
   * bfloat16 1: where it is faster, queries (times scale), keys, values and softmax weights may be rounded to bfloat16
   * before they are multiplied.
   */
  attention: {
    code: 12,
    inputs: [
      'q',
      'k',
      'v',
      'cache_k?',
      'cache_v?',
      'query_starts',
      'query_lengths',
      'context_lengths',
      'block_tables?',
      'alibi_slopes?',
    ],
    outputs: ['out'],
    attributes: ['scale', 'causal', 'window', 'softcap', 'bfloat16'],
    infer: (inputs) => inferAttention('attention', inputs),
  },
  /**
   * cos and sin [tokens, R/2] of positions[t] · inverse_frequencies[i] · 1 (the angle rounded to float32, as
   * transformers does), each times `scaling`.
   */
  rope_table: {
    code: 13,
    inputs: ['positions', 'inverse_frequencies'],
    outputs: ['cos', 'sin'],
    attributes: ['scaling'],
    infer: (inputs) => {
      const positions = need('rope_table', inputs, 0, 'positions', 1, I32);
      const half = dim(need('rope_table', inputs, 1, 'inverse_frequencies', 1, F32), 0);
      return [f32(dim(positions, 0), half), f32(dim(positions, 0), half)];
    },
  },
  /**
   * Rotary position embedding (Su et al. 2021) of x [tokens, N, D] (may be a strided view, last stride 1); the first R
   * = 2 · cos.dims[1] of D features turn, the rest pass through. interleaved 0: pairs (i, i + R/2), Llama's and NeoX's;
   * 1: pairs (2i, 2i + 1), GPT-J's.
   */
  rope: {
    code: 14,
    inputs: ['x', 'cos', 'sin'],
    outputs: ['out'],
    attributes: ['interleaved'],
    infer: (inputs) => {
      const x = need('rope', inputs, 0, 'x', 3, F32);
      const cos = need('rope', inputs, 1, 'cos', 2, F32);
      needDims('rope', 'cos', cos, [dim(x, 0), dim(cos, 1)]);
      needDims('rope', 'sin', need('rope', inputs, 2, 'sin', 2, F32), cos.dims);
      return [f32(...x.dims)];
    },
  },
  /** Elementwise; `kind` is an index of ACTIVATION_KINDS. Any rank. */
  activation: {
    code: 15,
    inputs: ['x'],
    outputs: ['out'],
    attributes: ['kind'],
    infer: (inputs) => {
      const x = inputs[0];
      if (x == null || x.dtype !== 'float32')
        throw new DtypeError(`activation: expected x as float32, got ${x?.dtype}`);
      return [f32(...x.dims)];
    },
    inPlace: true,
  },
  /** a + b, same shape, float32. */
  add: {
    code: 16,
    inputs: ['a', 'b'],
    outputs: ['out'],
    attributes: [],
    infer: (inputs) => inferSame('add', inputs),
    inPlace: true,
  },
  /** a · b, same shape, float32. */
  mul: {
    code: 17,
    inputs: ['a', 'b'],
    outputs: ['out'],
    attributes: [],
    infer: (inputs) => inferSame('mul', inputs),
    inPlace: true,
  },
  /**
   * Converts between float dtypes, round-to-nearest-even, and from integers to float32. The caller's output tensor says
   * to which.
   */
  cast: {
    code: 18,
    inputs: ['x'],
    outputs: ['out'],
    attributes: [],
    infer: (inputs) => {
      if (inputs[0] == null) throw new ShapeError('cast: expected an input x, got none');
      return [f32(...inputs[0].dims)];
    },
  },
  /** A contiguous copy of a strided view, any dtype. */
  copy: {
    code: 19,
    inputs: ['x'],
    outputs: ['out'],
    attributes: [],
    infer: (inputs) => {
      if (inputs[0] == null) throw new ShapeError('copy: expected an input x, got none');
      return [{ dims: inputs[0].dims, dtype: inputs[0].dtype }];
    },
  },
  /** Rows `rows[o]` of x [tokens, H]. */
  select_rows: {
    code: 20,
    inputs: ['x', 'rows'],
    outputs: ['out'],
    attributes: [],
    infer: (inputs) => {
      const x = need('select_rows', inputs, 0, 'x', 2, F32);
      return [f32(dim(need('select_rows', inputs, 1, 'rows', 1, I32), 0), dim(x, 1))];
    },
  },
  /** Index of the largest value of each row; the first of equals; NaN counts as largest. */
  argmax: {
    code: 21,
    inputs: ['x'],
    outputs: ['out'],
    attributes: [],
    infer: (inputs) => [{ dims: [dim(need('argmax', inputs, 0, 'x', 2, F32), 0)], dtype: 'int32' }],
  },
  /**
   * One token per row of logits [R, V]. parameters [R, 4] = temperature, top_k, top_p, repetition_penalty; uniforms [R]
   * in [0, 1); history [R, L] of earlier ids, history_lengths [R]. Order (as transformers): repetition penalty (Keskar
   * et al. 2019: a seen id's logit is divided by the penalty if positive, else multiplied), then temperature ≤ 0 means
   * argmax, else divide by it, keep the top_k largest (0: all), of these the smallest set with probability ≥ top_p (1:
   * all; Holtzman et al. 2020), and take the first id, in order of falling probability (ties: lower id first), whose
   * cumulative probability exceeds the uniform. Sums in float64, so that every backend chooses alike.
   */
  sample: {
    code: 22,
    inputs: ['logits', 'parameters', 'uniforms', 'history', 'history_lengths'],
    outputs: ['ids'],
    attributes: [],
    infer: (inputs) => {
      const rows = dim(need('sample', inputs, 0, 'logits', 2, F32), 0);
      needDims('sample', 'parameters', need('sample', inputs, 1, 'parameters', 2, F32), [rows, 4]);
      needDims('sample', 'uniforms', need('sample', inputs, 2, 'uniforms', 1, F32), [rows]);
      const history = need('sample', inputs, 3, 'history', 2, I32);
      needDims('sample', 'history', history, [rows, dim(history, 1)]);
      needDims('sample', 'history_lengths', need('sample', inputs, 4, 'history_lengths', 1, I32), [rows]);
      return [{ dims: [rows], dtype: 'int32' }];
    },
    scratch: (inputs) => roundUp(size(inputs[0], 1) * 12, 64),
  },
  /**
   * out = Σ x[t,k] · CB[n,k] · SCB[n] / 127 + bias: int8 weights, activations left in float (no outliers to treat). CB
   * strided or packed.
   * bfloat16 1: with many rows x and CB may be multiplied as bfloat16 (CB is exact in it), accumulated in float32.
   */
  int8_weight_linear: {
    code: 23,
    inputs: ['x', 'CB', 'SCB', 'bias?'],
    outputs: ['out'],
    attributes: ['bfloat16'],
    infer: (inputs) => {
      const x = need('int8_weight_linear', inputs, 0, 'x', 2, F32);
      const CB = need('int8_weight_linear', inputs, 1, 'CB', 2, I8);
      needDims('int8_weight_linear', 'CB', CB, [dim(CB, 0), dim(x, 1)]);
      needDims('int8_weight_linear', 'SCB', need('int8_weight_linear', inputs, 2, 'SCB', 1, F32), [dim(CB, 0)]);
      optional('int8_weight_linear', inputs, 3, 'bias', [dim(CB, 0)], FLOATS);
      return [f32(dim(x, 0), dim(CB, 0))];
    },
    // Activations as bfloat16 panels, and the weight packed on the fly where it comes strided.
    scratch: (inputs) => {
      const [rows, K, N] = [size(inputs[0], 0), size(inputs[0], 1), size(inputs[1], 0)];
      const panels = roundUp(rows, 48) * roundUp(K, 64) * 2 + 4096;
      return panels + (inputs[1]?.layout === 'packed_int8' ? 0 : roundUp(packedInt8Bytes(N, K), 64));
    },
  },
  /**
   * Row `ids[t]` of an int8 table: CB[id] · SCB[id] / 127, as float32. CB [V, H] strided or packed. ids outside 0…V-1
   * are refused.
   */
  int8_embedding: {
    code: 24,
    inputs: ['ids', 'CB', 'SCB'],
    outputs: ['out'],
    attributes: [],
    infer: (inputs) => {
      const ids = need('int8_embedding', inputs, 0, 'ids', 1, I32);
      const CB = need('int8_embedding', inputs, 1, 'CB', 2, I8);
      needDims('int8_embedding', 'SCB', need('int8_embedding', inputs, 2, 'SCB', 1, F32), [dim(CB, 0)]);
      return [f32(dim(ids, 0), dim(CB, 1))];
    },
  },
} as const satisfies Record<string, OpSignature>;

export type OpName = keyof typeof OPS;
export const OP_NAMES = Object.keys(OPS) as OpName[];

export function opSignature(op: OpName): OpSignature {
  return OPS[op];
}

/** Bytes a tensor of this spec takes; every dim must be a number. */
export function specBytes(spec: TensorSpec): number {
  const dims = spec.dims as readonly number[];
  if (spec.layout === 'packed_int8') return packedInt8Bytes(dims[0] as number, dims[1] as number);
  return dims.reduce((product, d) => product * d, DTYPES[spec.dtype].bytes);
}
