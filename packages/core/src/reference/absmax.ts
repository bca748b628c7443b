/**
 * Reference maths of 8-bit quantization with one scale for a whole tensor, in plain loops: what the paper's section 2.1
 * defines, to read and to test against. Dettmers, Lewis, Belkada, Zettlemoyer 2022, "LLM.int8(): 8-bit Matrix
 * Multiplication for Transformers at Scale" (arXiv 2208.07339).
 * Scales by row are `llm-int8.ts`; fast kernels are the backends'.
 */
import { DtypeError } from '../errors.js';
import { type Tensor, tensor } from '../tensor.js';
import { floatValues, roundHalfEven } from './rounding.js';

/**
 * One value in int8 by the absmax of its row or tensor: round-half-even(value · (127 / absmax)), the scale and the
 * product each rounded to float32 as the kernels do. 0 where absmax is 0 or the product is NaN (infinity · 0). Where
 * 127 / absmax exceeds float32 (absmax below 3.74e-37), the quotient is taken in float64.
 */
export function quantizeByAbsmax(value: number, absmax: number): number {
  if (absmax === 0) return 0;
  const scale = Math.fround(127 / absmax);
  const quotient = scale === Number.POSITIVE_INFINITY ? (value * 127) / absmax : Math.fround(value * scale);
  return Number.isNaN(quotient) ? 0 : roundHalfEven(quotient);
}

export interface AbsmaxQuantized {
  /** int8, x's shape. */
  q: Tensor;
  /** 127 / max |x|; x ≈ q / scale. 1 for a tensor of zeros. */
  scale: number;
}

/**
 * Absmax quantization of a whole tensor: q = ⌊127 · x / max |x|⌉ (section 2.1, "Absmax quantization"). x: float16,
 * bfloat16 or float32, any shape.
 * Infinity and NaN in x make the scale 0 or NaN, so that they show after dequantizing. Throws DtypeError.
 */
export function quantizeAbsmax(x: Tensor): AbsmaxQuantized {
  const values = floatValues('quantizeAbsmax', x);
  let absmax = 0;
  for (const value of values) absmax = Math.max(absmax, Math.abs(value)); // NaN stays
  const q = Int8Array.from(values, (value) => quantizeByAbsmax(value, absmax));
  return { q: tensor(q, { dtype: 'int8', shape: x.shape, device: x.device }), scale: absmax === 0 ? 1 : 127 / absmax };
}

/** q / scale, float32. Throws DtypeError. */
export function dequantizeAbsmax(q: Tensor, scale: number): Tensor {
  return dequantize('dequantizeAbsmax', q, (value) => value / scale);
}

export interface ZeropointQuantized {
  /** int8 in -127 … 127, x's shape. */
  q: Tensor;
  /** The normalized dynamic range nd = 254 / (max x - min x). */
  scale: number;
  /** A whole number; x ≈ (q + zeroPoint) / scale. */
  zeroPoint: number;
}

/**
 * Zero-point quantization of a whole tensor onto the full range -127 … 127 (section 2.1, "Zeropoint quantization"):
 * nd = 2·127 / (max x - min x), zp = ⌊nd · min x⌉ + 127, q = ⌊nd · x⌉ - zp.
 * The sign is the paper's: products are taken over q + zp. Its printed formula of zp lacks the factor nd and its q the
 * shift; these are what its text describes. A tensor of one repeated value keeps that value exactly.
 * In float64, rounded half to even. Throws DtypeError.
 */
export function quantizeZeropoint(x: Tensor): ZeropointQuantized {
  const values = floatValues('quantizeZeropoint', x);
  let [low, high] = values.length === 0 ? [0, 0] : [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  const constant = low === high;
  const scale = constant ? 127 / (Math.abs(low) || 127) : 254 / (high - low);
  const zeroPoint = constant ? 0 : roundHalfEven(scale * low) + 127;
  const q = Int8Array.from(values, (value) => {
    return Math.max(-127, Math.min(127, roundHalfEven(scale * value) - zeroPoint)) || 0;
  });
  return { q: tensor(q, { dtype: 'int8', shape: x.shape, device: x.device }), scale, zeroPoint };
}

/** (q + zeroPoint) / scale, float32. Throws DtypeError. */
export function dequantizeZeropoint(q: Tensor, scale: number, zeroPoint: number): Tensor {
  return dequantize('dequantizeZeropoint', q, (value) => (value + zeroPoint) / scale);
}

function dequantize(op: string, q: Tensor, value: (q: number) => number): Tensor {
  if (q.dtype !== 'int8') throw new DtypeError(`${op}: expected int8, got ${q.dtype}`);
  return tensor(Float32Array.from(q.contiguous().toInt8Array(), value), { shape: q.shape, device: q.device });
}
