/** Rounding and row access of the reference maths: what IEEE 754 and the ops' tables ask for, in plain JavaScript. */
import { DTYPES } from '../dtype.js';
import { DtypeError, ShapeError } from '../errors.js';
import { elementCount, formatDims } from '../shape.js';
import type { Tensor } from '../tensor.js';

/** Nearest whole number, ties to the even one (roundTiesToEven); NaN stays NaN. */
export function roundHalfEven(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest === 0.5) return below % 2 === 0 ? below : below + 1;
  return rest < 0.5 ? below : below + 1;
}

/** A tensor's values as float32 rows: `[..., K]` is `[rows, K]`, one dimension is one row. */
export interface Rows {
  readonly values: Float32Array;
  readonly rows: number;
  readonly columns: number;
}

/** The values of a float tensor, row by row, exact in float32 whatever its dtype. Throws DtypeError. */
export function floatValues(op: string, x: Tensor): Float32Array {
  if (!DTYPES[x.dtype].isFloat) throw new DtypeError(`${op}: expected a float tensor, got ${x.dtype}`);
  return x.contiguous().toFloat32Array();
}

/** `floatValues` as rows. Throws DtypeError, ShapeError (a scalar). */
export function floatRows(op: string, x: Tensor): Rows {
  const values = floatValues(op, x);
  const shape = x.shape;
  const columns = shape.at(-1);
  if (columns === undefined) throw new ShapeError(`${op}: expected at least one dimension, got a scalar`);
  return { values, rows: elementCount(shape.slice(0, -1)), columns };
}

/** The values of a vector with one entry per row. Throws ShapeError. */
export function vector(op: string, name: string, x: Tensor, length: number): Float32Array {
  if (x.numel !== length)
    throw new ShapeError(`${op}: expected ${name} of ${length} values, got ${formatDims(x.dims)}`);
  return x.contiguous().toFloat32Array();
}
