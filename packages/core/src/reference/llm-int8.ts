/**
 * Reference maths of LLM.int8() in plain loops, under bitsandbytes' names: row-wise absmax quantization, outliers, int8
 * product, one rounding at the end. Dettmers, Lewis, Belkada, Zettlemoyer 2022 (arXiv 2208.07339): section 3.1
 * (vector-wise quantization), section 3.2 (mixed-precision decomposition). To read and to test against; the
 * kernels of `int8_quantize` and `int8_linear` (ops.ts) compute the same fast.
 * Not bitsandbytes bit for bit: no detour through float16, its mistyped 1/127² is the exact one, and there is one
 * rounding, not two.
 */
import { DTYPES } from '../dtype.js';
import { ArgumentError, DtypeError, ShapeError } from '../errors.js';
import { float16BitsToFloat32, float32ToFloat16Bits } from '../float16.js';
import { elementCount, formatDims } from '../shape.js';
import { type Tensor, tensor } from '../tensor.js';
import { quantizeByAbsmax } from './absmax.js';
import { floatRows, type Rows, roundHalfEven, vector } from './rounding.js';

/** Which outliers leave the int8 product: whole columns over all rows (as published), or each row's own elements. */
export type OutlierRule = 'per-batch' | 'per-row';

/** Longest row whose int8 products fit int32 whatever their signs: ⌊(2^31 - 1) / 127²⌋. */
export const MAX_INT8_COLUMNS = 133_144;

export interface VectorwiseQuantized {
  /** int8, x's shape. */
  CA: Tensor;
  /** float32 [rows]: absmax of the row's elements that are no outliers, not divided by 127. */
  SCA: Tensor;
  /** int32, ascending: columns with an outlier in any row; null with threshold 0. */
  outlierCols: Tensor | null;
}

/**
 * Row-wise absmax quantization: CA = round-half-even(x · 127 / SCA) over x `[..., K]`, float16, bfloat16 or float32
 * from its own values.
 * With threshold τ > 0 an element is an outlier unless |x| < τ (NaN is one). Outliers do not count in SCA; the other
 * elements of their columns do.
 * per-batch: the columns of outliers are 0 in CA for every row. per-row: only the elements themselves.
 * With τ = 0 a NaN makes its row's SCA NaN, infinity makes it infinite, so that neither is lost. A row of zeros gives
 * zeros and SCA 0.
 * Throws ArgumentError (τ negative or NaN), DtypeError, ShapeError.
 */
export function int8VectorwiseQuant(
  x: Tensor,
  threshold = 0,
  { outliers = 'per-batch' }: { outliers?: OutlierRule } = {},
): VectorwiseQuantized {
  if (!(threshold >= 0))
    throw new ArgumentError(`int8VectorwiseQuant: expected a threshold from 0 on, got ${threshold}`);
  const rows = floatRows('int8VectorwiseQuant', x);
  const isOutlier = (value: number): boolean => threshold > 0 && !(Math.abs(value) < threshold);
  const columns = outlierColumns(rows, isOutlier);
  const CA = new Int8Array(rows.values.length);
  const SCA = new Float32Array(rows.rows);
  for (let t = 0; t < rows.rows; t++) {
    const row = rows.values.subarray(t * rows.columns, (t + 1) * rows.columns);
    let absmax = 0;
    for (const value of row) if (!isOutlier(value)) absmax = Math.max(absmax, Math.abs(value)); // NaN stays
    SCA[t] = absmax;
    for (const [k, value] of row.entries()) {
      const dropped = outliers === 'per-row' ? isOutlier(value) : columns.has(k);
      CA[t * rows.columns + k] = dropped ? 0 : quantizeByAbsmax(value, absmax);
    }
  }
  const { device } = x;
  return {
    CA: tensor(CA, { dtype: 'int8', shape: x.shape, device }),
    SCA: tensor(SCA, { device }),
    outlierCols: threshold === 0 ? null : tensor(Int32Array.from(columns).sort(), { dtype: 'int32', device }),
  };
}

function outlierColumns({ values, columns }: Rows, isOutlier: (value: number) => boolean): Set<number> {
  const found = new Set<number>();
  for (const [i, value] of values.entries()) if (isOutlier(value)) found.add(i % columns);
  return found;
}

/**
 * q · absmax / 127 by row, float32: q int8 `[..., K]`, absmax float32 `[rows]`; one rounding. Throws DtypeError,
 * ShapeError.
 */
export function int8VectorwiseDequant(q: Tensor, absmax: Tensor): Tensor {
  const { values, rows, columns } = int8Rows('int8VectorwiseDequant', 'q', q);
  const scales = vector('int8VectorwiseDequant', 'absmax', absmax, rows);
  const out = new Float32Array(values.length);
  for (let i = 0; i < out.length; i++) {
    out[i] = ((values[i] as number) * (scales[Math.floor(i / columns)] as number)) / 127;
  }
  return tensor(out, { shape: q.shape, device: q.device });
}

export interface QuantizedWeight {
  /** int8 [N, K]. */
  CB: Tensor;
  /** float32 [N]: absmax of the row, not divided by 127. */
  SCB: Tensor;
}

/**
 * Quantizes a weight [N, K] by row, once, without outliers. `castToFloat16First` gives bitsandbytes' files (its CPU
 * path): weights are rounded to float16 before, and the scale is fl(fl(1 / SCB) · 127) in place of fl(127 / SCB).
 * Throws DtypeError, ShapeError.
 */
export function int8WeightQuant(
  weight: Tensor,
  { castToFloat16First = false }: { castToFloat16First?: boolean } = {},
): QuantizedWeight {
  if (weight.dims.length !== 2) {
    throw new ShapeError(`int8WeightQuant: expected a weight [N, K], got ${formatDims(weight.dims)}`);
  }
  if (!castToFloat16First) {
    const { CA, SCA } = int8VectorwiseQuant(weight);
    return { CB: CA, SCB: SCA };
  }
  const { values, rows, columns } = floatRows('int8WeightQuant', weight);
  const halves = values.map((value) => float16BitsToFloat32(float32ToFloat16Bits(value)));
  const CB = new Int8Array(halves.length);
  const SCB = new Float32Array(rows);
  for (let n = 0; n < rows; n++) {
    const row = halves.subarray(n * columns, (n + 1) * columns);
    let absmax = 0;
    for (const value of row) absmax = Math.max(absmax, Math.abs(value));
    SCB[n] = absmax;
    const scale = Math.fround(Math.fround(1 / absmax) * 127);
    for (const [k, value] of row.entries()) CB[n * columns + k] = roundHalfEven(Math.fround(value * scale)) || 0;
  }
  const { device } = weight;
  return { CB: tensor(CB, { dtype: 'int8', shape: weight.shape, device }), SCB: tensor(SCB, { device }) };
}

/**
 * CA `[..., K]` · CBᵀ `[N, K]`, int8 → int32 `[..., N]`, exact. Throws DtypeError (not int8), ShapeError (no matrix CB,
 * another K, K above 133,144).
 */
export function int8LinearMatmul(CA: Tensor, CB: Tensor): Tensor {
  const op = 'int8LinearMatmul';
  const a = int8Rows(op, 'CA', CA);
  if (CB.dims.length !== 2) throw new ShapeError(`${op}: expected CB of shape [N, K], got ${formatDims(CB.dims)}`);
  const b = int8Rows(op, 'CB', CB);
  const K = a.columns;
  if (b.columns !== K) throw new ShapeError(`${op}: expected CB with ${K} columns, got ${b.columns}`);
  if (K > MAX_INT8_COLUMNS) throw new ShapeError(`${op}: expected at most ${MAX_INT8_COLUMNS} columns, got ${K}`);
  const out = new Int32Array(a.rows * b.rows); // [tokens, N]
  for (let t = 0; t < a.rows; t++) {
    for (let n = 0; n < b.rows; n++) {
      let sum = 0;
      for (let k = 0; k < K; k++) sum += (a.values[t * K + k] as number) * (b.values[n * K + k] as number);
      out[t * b.rows + n] = sum;
    }
  }
  return tensor(out, { dtype: 'int32', shape: [...CA.shape.slice(0, -1), b.rows], device: CA.device });
}

/**
 * acc · SCA · SCB / 127² + bias, float32: acc int32 `[..., N]`, SCA float32 [rows], SCB float32 [N], bias [N] of any
 * float dtype; one rounding. Throws DtypeError, ShapeError.
 */
export function int8MmDequant(acc: Tensor, SCA: Tensor, SCB: Tensor, bias: Tensor | null = null): Tensor {
  const op = 'int8MmDequant';
  if (acc.dtype !== 'int32') throw new DtypeError(`${op}: expected acc as int32, got ${acc.dtype}`);
  for (const scale of [SCA, SCB]) {
    if (scale.dtype !== 'float32') throw new DtypeError(`${op}: expected scales as float32, got ${scale.dtype}`);
  }
  const values = acc.contiguous().toInt32Array();
  const N = acc.shape.at(-1) ?? 1;
  const rowScales = vector(op, 'SCA', SCA, elementCount(acc.shape.slice(0, -1)));
  const columnScales = vector(op, 'SCB', SCB, N);
  const shifts = biasValues(op, bias, N);
  const out = new Float32Array(values.length);
  for (let i = 0; i < out.length; i++) {
    const [t, n] = [Math.floor(i / N), i % N];
    const product = (values[i] as number) * (rowScales[t] as number) * (columnScales[n] as number);
    out[i] = product / (127 * 127) + (shifts[n] as number);
  }
  return tensor(out, { shape: acc.shape, device: acc.device });
}

export interface LlmInt8Options {
  /** Outlier threshold τ, 6.0 in the paper; 0 switches the decomposition off. Default 0, as bitsandbytes'. */
  threshold?: number;
  bias?: Tensor | null | undefined;
  outliers?: OutlierRule;
}

export interface LlmInt8Result extends VectorwiseQuantized {
  /** `[..., N]` in x's dtype. */
  out: Tensor;
  /** int32 `[..., N]`: CA · CBᵀ. */
  accumulators: Tensor;
}

/**
 * The whole layer (section 3.2): out = (CA · CBᵀ) · SCA · SCB / 127² + Σ over outliers x · CB · SCB / 127 +
 * bias, for x `[..., K]`, CB int8 `[N, K]`, SCB float32 `[N]`. Outlier weights come from CB, too: there is no other
 * copy of them. Sums in float64, rounded once to x's dtype (through float32). An infinity or NaN of x reaches out.
 * Throws ArgumentError, DtypeError, ShapeError.
 */
export function llmInt8Linear(x: Tensor, CB: Tensor, SCB: Tensor, options: LlmInt8Options = {}): LlmInt8Result {
  const { threshold = 0, bias = null, outliers = 'per-batch' } = options;
  const { values, rows, columns: K } = floatRows('llmInt8Linear', x);
  const { CA, SCA, outlierCols } = int8VectorwiseQuant(x, threshold, { outliers });
  const accumulators = int8LinearMatmul(CA, CB);
  const [acc, rowScales, cb] = [accumulators.toInt32Array(), SCA.toFloat32Array(), int8Rows('llmInt8Linear', 'CB', CB)];
  const N = cb.rows;
  const scales = vector('llmInt8Linear', 'SCB', SCB, N);
  const shifts = biasValues('llmInt8Linear', bias, N);
  const columns = outlierCols?.toInt32Array() ?? [];
  const out = new Float64Array(rows * N);
  for (let t = 0; t < rows; t++) {
    const floatColumns = columns.filter(
      (k) => outliers === 'per-batch' || !(Math.abs(values[t * K + k] as number) < threshold),
    );
    for (let n = 0; n < N; n++) {
      const scale = scales[n] as number;
      let sum = ((acc[t * N + n] as number) * (rowScales[t] as number) * scale) / (127 * 127);
      for (const k of floatColumns)
        sum += ((values[t * K + k] as number) * (cb.values[n * K + k] as number) * scale) / 127;
      out[t * N + n] = sum + (shifts[n] as number);
    }
  }
  const shape = [...x.shape.slice(0, -1), N];
  return { out: tensor(out, { dtype: x.dtype, shape, device: x.device }), CA, SCA, outlierCols, accumulators };
}

function biasValues(op: string, bias: Tensor | null, N: number): Float32Array {
  if (bias !== null && !DTYPES[bias.dtype].isFloat)
    throw new DtypeError(`${op}: expected a float bias, got ${bias.dtype}`);
  return bias === null ? new Float32Array(N) : vector(op, 'bias', bias, N);
}

function int8Rows(op: string, name: string, x: Tensor): { values: Int8Array; rows: number; columns: number } {
  if (x.dtype !== 'int8') throw new DtypeError(`${op}: expected ${name} as int8, got ${x.dtype}`);
  const columns = x.shape.at(-1);
  if (columns === undefined) throw new ShapeError(`${op}: expected ${name} with at least one dimension, got a scalar`);
  return { values: x.contiguous().toInt8Array(), rows: elementCount(x.shape.slice(0, -1)), columns };
}
