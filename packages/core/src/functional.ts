/**
 * The ops as functions of tensors, in PyTorch's words; they run where their inputs live (cpu, cuda) or are recorded
 * (meta). Inputs of other float dtypes are computed in float32 and the result is rounded once to the input's dtype.
 */

import { callOp, nativeOpBackend, registerOpBackend } from './backend.js';
import { type DeviceName, parseDevice } from './device.js';
import { DTYPES, type DType } from './dtype.js';
import { DtypeError, StateError } from './errors.js';
import { native } from './native.js';
import { ACTIVATION_KINDS, type ActivationKind } from './ops.js';
import { empty, Tensor } from './tensor.js';

const nativeBackend = nativeOpBackend((spec, device) =>
  empty(spec.dims, { dtype: spec.dtype, device: device.name, layout: spec.layout ?? 'strided' }),
);
registerOpBackend('cpu', nativeBackend);
registerOpBackend('cuda', nativeBackend);

function one(
  op: Parameters<typeof callOp>[0],
  inputs: readonly (Tensor | null)[],
  attributes: readonly number[] = [],
): Tensor {
  return callOp(op, inputs, attributes)[0] as Tensor;
}

/** Runs `compute` on x in float32 and rounds its result to x's dtype. */
function inFloat32(x: Tensor, compute: (x: Tensor) => Tensor): Tensor {
  if (x.dtype === 'float32') return compute(x);
  if (!DTYPES[x.dtype].isFloat) throw new DtypeError(`expected a float tensor, got ${x.dtype}`);
  return cast(compute(cast(x, 'float32')), x.dtype);
}

/** Values in another dtype, round-to-nearest-even; x itself where it has it already. Integers go to float32 only. */
export function cast(x: Tensor, dtype: DType): Tensor {
  if (x.dtype === dtype) return x;
  return callOp('cast', [contiguous(x)], [], [{ dims: x.dims, dtype }])[0] as Tensor;
}

/** x with its elements lying densely, row by row; x itself where they do. */
export function contiguous(x: Tensor): Tensor {
  return x.isContiguous ? x : one('copy', [x]);
}

/** A copy with its own storage. */
export function clone(x: Tensor): Tensor {
  return x.layout === 'strided'
    ? one('copy', [x])
    : (callOp('copy', [x], [], [{ dims: x.dims, dtype: x.dtype, layout: x.layout }])[0] as Tensor);
}

/**
 * Moves and casts; x itself where nothing changes. Throws StateError when leaving meta, whose tensors have no values.
 */
export function to(x: Tensor, { device, dtype }: { device?: DeviceName; dtype?: DType }): Tensor {
  const typed = dtype === undefined ? x : cast(x, dtype);
  const target = parseDevice(device ?? typed.device);
  if (target.name === typed.device) return typed;
  if (target.type === 'meta') return empty(typed.dims, { dtype: typed.dtype, device: 'meta', layout: typed.layout });
  if (typed.isMeta) {
    throw new StateError('to: a tensor on meta has no values to move', {
      hint: 'load values with setModuleTensorToDevice or loadStateDict',
    });
  }
  const dense = typed.layout === 'strided' ? contiguous(typed) : typed;
  const moved = empty(dense.dims, { dtype: dense.dtype, device: target.name, layout: dense.layout });
  const [from, into] = [dense.storage, moved.storage];
  if (from !== null && into !== null && into.bytes > 0) {
    native().copy(into.buffer, 0, from.buffer, dense.offset * DTYPES[dense.dtype].bytes, into.bytes);
  }
  return moved;
}

/** Rows `ids` (int32) of `table [V, H]`: `[tokens, H]`, float32. */
export function embedding(ids: Tensor, table: Tensor): Tensor {
  return one('embedding', [ids, table]);
}

export function layerNorm(x: Tensor, weight: Tensor, bias: Tensor | null, epsilon: number): Tensor {
  return inFloat32(x, (f) => one('layer_norm', [f, weight, bias], [epsilon]));
}

export function rmsNorm(x: Tensor, weight: Tensor, epsilon: number): Tensor {
  return inFloat32(x, (f) => one('rms_norm', [f, weight], [epsilon]));
}

/** x `[tokens, in]` · weightᵀ `[out, in]` + bias. */
export function linear(x: Tensor, weight: Tensor, bias: Tensor | null = null): Tensor {
  return inFloat32(x, (f) => one('linear', [f, weight, bias]));
}

export interface Int8LinearOptions {
  /** Outlier threshold τ; 0 switches the decomposition off. */
  threshold: number;
  /** Which outliers go to float: whole columns over the batch (as published), or each row's own elements. */
  outliers: 'per-batch' | 'per-row';
}

/**
 * LLM.int8(): quantizes x by row, multiplies in int8, adds the outlier part; see `int8_quantize` and `int8_linear` in
 * ops.ts.
 */
export function int8Linear(
  x: Tensor,
  CB: Tensor,
  SCB: Tensor,
  bias: Tensor | null,
  { threshold, outliers }: Int8LinearOptions,
): Tensor {
  const attributes = [threshold, outliers === 'per-row' ? 1 : 0];
  return inFloat32(x, (f) => {
    const [CA, SCA, columns] = callOp('int8_quantize', [f], attributes) as [Tensor, Tensor, Tensor];
    return one('int8_linear', [f, CA, SCA, columns, CB, SCB, bias], attributes);
  });
}

/** int8 weights, activations in float: x · (CB · SCB / 127)ᵀ + bias. See `int8_weight_linear` in ops.ts. */
export function int8WeightLinear(
  x: Tensor,
  CB: Tensor,
  SCB: Tensor,
  bias: Tensor | null,
  { bfloat16 = false } = {},
): Tensor {
  return inFloat32(x, (f) => one('int8_weight_linear', [f, CB, SCB, bias], [bfloat16 ? 1 : 0]));
}

/** Rows `ids` of an int8 table `[V, H]` with its row scales: `[tokens, H]`, float32. */
export function int8Embedding(ids: Tensor, CB: Tensor, SCB: Tensor): Tensor {
  return one('int8_embedding', [ids, CB, SCB]);
}

/** Row-wise absmax quantization of a weight: see `quantize_weight` in ops.ts. */
export function quantizeWeight(weight: Tensor, { float16First = false } = {}): { CB: Tensor; SCB: Tensor } {
  const [CB, SCB] = callOp('quantize_weight', [contiguous(weight)], [float16First ? 1 : 0]) as [Tensor, Tensor];
  return { CB, SCB };
}

/** CB · SCB / 127, float32. */
export function dequantizeWeight(CB: Tensor, SCB: Tensor): Tensor {
  return one('dequantize_weight', [CB, SCB]);
}

export interface AttentionStep {
  /** int32 [sequences] each; see `attention` in ops.ts. */
  queryStarts: Tensor;
  queryLengths: Tensor;
  contextLengths: Tensor;
  /** int32 [sequences, blocks]; null without a cache. */
  blockTables: Tensor | null;
}

export interface AttentionOptions {
  scale: number;
  causal: boolean;
  /** Keys a query sees, itself included; 0: all. */
  window?: number;
  softcap?: number;
  alibiSlopes?: Tensor | null;
  cache?: { k: Tensor; v: Tensor } | null;
}

/** Attention of a ragged batch: q `[tokens, N, D]`, k and v `[tokens, KV, D]` → `[tokens, N, D]`. */
export function attention(q: Tensor, k: Tensor, v: Tensor, step: AttentionStep, options: AttentionOptions): Tensor {
  const { scale, causal, window = 0, softcap = 0, alibiSlopes = null, cache = null } = options;
  return one(
    'attention',
    [
      q,
      k,
      v,
      cache?.k ?? null,
      cache?.v ?? null,
      step.queryStarts,
      step.queryLengths,
      step.contextLengths,
      cache === null ? null : step.blockTables,
      alibiSlopes,
    ],
    [scale, causal ? 1 : 0, window, softcap, 0],
  );
}

/** cos and sin `[tokens, R/2]` for `rope`. */
export function ropeTable(positions: Tensor, inverseFrequencies: Tensor, scaling = 1): { cos: Tensor; sin: Tensor } {
  const [cos, sin] = callOp('rope_table', [positions, inverseFrequencies], [scaling]) as [Tensor, Tensor];
  return { cos, sin };
}

export function rope(x: Tensor, table: { cos: Tensor; sin: Tensor }, { interleaved = false } = {}): Tensor {
  return one('rope', [x, table.cos, table.sin], [interleaved ? 1 : 0]);
}

export function activation(x: Tensor, kind: ActivationKind): Tensor {
  return inFloat32(x, (f) => one('activation', [f], [ACTIVATION_KINDS.indexOf(kind)]));
}
export const relu = (x: Tensor): Tensor => activation(x, 'relu');
export const silu = (x: Tensor): Tensor => activation(x, 'silu');
/** `approximate: 'tanh'` is BLOOM's and GPT-2's; 'none' is erf-exact. */
export function gelu(x: Tensor, { approximate = 'none' }: { approximate?: 'none' | 'tanh' } = {}): Tensor {
  return activation(x, approximate === 'tanh' ? 'gelu_tanh' : 'gelu');
}

export function add(a: Tensor, b: Tensor): Tensor {
  return inFloat32(a, (f) => one('add', [f, cast(b, 'float32')]));
}
export function mul(a: Tensor, b: Tensor): Tensor {
  return inFloat32(a, (f) => one('mul', [f, cast(b, 'float32')]));
}

/** Rows of x `[tokens, H]`: `[outputs, H]`. */
export function selectRows(x: Tensor, rows: Tensor): Tensor {
  return one('select_rows', [x, rows]);
}

export function argmax(x: Tensor): Tensor {
  return one('argmax', [x]);
}

declare module './tensor.js' {
  interface Tensor {
    /** Moves and casts; the tensor itself where nothing changes. Throws StateError when leaving meta. */
    to(target: { device?: DeviceName; dtype?: DType } | DeviceName): Tensor;
    /** The elements lying densely, row by row; the tensor itself where they do. */
    contiguous(): Tensor;
    /** A copy with its own storage. */
    clone(): Tensor;
  }
}
Tensor.prototype.to = function (target) {
  return to(this, typeof target === 'string' ? { device: target } : target);
};
Tensor.prototype.contiguous = function () {
  return contiguous(this);
};
Tensor.prototype.clone = function () {
  return clone(this);
};
