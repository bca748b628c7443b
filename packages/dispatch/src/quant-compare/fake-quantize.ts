/**
 * Quantization of values in JavaScript memory, for the methods that no native op has: one absmax for a whole tensor,
 * and zero-point. The formulas are those of core's reference maths (Dettmers et al. 2022, section 2.1), to the bit, in
 * loops fast enough for a real model. By row with absmax is `int8_quantize`'s.
 */

/** Adding and subtracting 1.5 · 2^52 in float64 rounds to a whole number, half to even (magnitudes below 2^51). */
const TO_WHOLE = 6_755_399_441_055_744;

export interface AbsmaxValues {
  q: Int8Array;
  /** Not divided by 127. */
  absmax: number;
}

/** Absmax with one scale for all values: q = ⌊127 · x / max |x|⌉, as `quantizeAbsmax`. */
export function quantizeByOneAbsmax(values: Float32Array): AbsmaxValues {
  let absmax = 0;
  for (const value of values) absmax = Math.max(absmax, Math.abs(value)); // NaN stays
  const q = new Int8Array(values.length);
  if (absmax === 0) return { q, absmax };
  const scale = Math.fround(127 / absmax);
  // 127 / absmax exceeds float32 for subnormal values: the quotient is taken in float64 there, as the reference does.
  const tiny = scale === Number.POSITIVE_INFINITY;
  for (let i = 0; i < q.length; i++) {
    const value = values[i] as number;
    const quotient = tiny ? (value * 127) / absmax : Math.fround(value * scale);
    q[i] = quotient + TO_WHOLE - TO_WHOLE; // NaN is stored as 0
  }
  return { q, absmax };
}

export interface ZeropointOptions {
  /** Values of one row; each row has its own range. The length of all values: one range for the tensor. */
  rowLength: number;
  /** Values outside ±threshold are outliers: they do not count in the range. 0: none. */
  threshold?: number;
  /** For rows of `columns` values: columns that are kept as they are. */
  keep?: { columns: number; kept: Uint8Array } | undefined;
}

/**
 * Zero-point quantization and back: each value as its 8 bits say it, (q + zp) / nd with nd = 254 / (max - min), as
 * `quantizeZeropoint` and `dequantizeZeropoint`.
 */
export function throughZeropoint(
  values: Float32Array,
  { rowLength, threshold = 0, keep }: ZeropointOptions,
): Float32Array {
  const out = new Float32Array(values.length);
  for (let start = 0; start < values.length; start += rowLength) {
    roundRange(values.subarray(start, start + rowLength), out.subarray(start, start + rowLength), threshold);
  }
  if (keep === undefined) return out;
  for (const [column, kept] of keep.kept.entries()) {
    if (kept === 0) continue;
    for (let i = column; i < out.length; i += keep.columns) out[i] = values[i] as number;
  }
  return out;
}

/** One range: its limits, then every value through its 8 bits. */
function roundRange(values: Float32Array, out: Float32Array, threshold: number): void {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const value of values) {
    if (threshold > 0 && !(Math.abs(value) < threshold)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return; // nothing but outliers, which are kept by column
  const constant = low === high;
  const scale = constant ? 127 / (Math.abs(low) || 127) : 254 / (high - low);
  const zeroPoint = constant ? 0 : scale * low + TO_WHOLE - TO_WHOLE + 127;
  for (let i = 0; i < out.length; i++) {
    const q = scale * (values[i] as number) + TO_WHOLE - TO_WHOLE - zeroPoint;
    const clamped = q > 127 ? 127 : q < -127 ? -127 : q || 0;
    out[i] = (clamped + zeroPoint) / scale;
  }
}

/**
 * Which columns of `[rows, columns]` have an outlier, a value not within ±threshold (NaN is one): 1 per such column.
 */
export function outlierColumns(values: Float32Array, columns: number, threshold: number): Uint8Array {
  const found = new Uint8Array(columns);
  for (let start = 0; start < values.length; start += columns) {
    for (let k = 0; k < columns; k++) if (!(Math.abs(values[start + k] as number) < threshold)) found[k] = 1;
  }
  return found;
}
