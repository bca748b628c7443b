/** Widths of dtypes in every spelling that maps and graphs use, also of dtypes metashard has no kernels for. */
import { DtypeError } from '@metashard/core';

const NARROW: Readonly<Record<string, number>> = { bool: 1 / 8, int2: 1 / 4, uint2: 1 / 4, int4: 1 / 2, uint4: 1 / 2 };

/**
 * Bytes of one element, as accelerate counts them: `bool` 1/8, `int4` 1/2, `int2` 1/4, any 8-bit float 1, else the
 * bits in the name ÷ 8. Takes `float16`, `torch.float16`, `fp16`, `f16`. Throws DtypeError.
 */
export function dtypeByteSize({ dtype }: { dtype: string }): number {
  const name = shortName(dtype);
  const narrow = NARROW[name];
  if (narrow !== undefined) return narrow;
  if (/^(float|fp|f)8(_|$)/.test(name)) return 1;
  const bits = /^(?:bfloat|bf|float|fp|f|u?int|[iu])(8|16|32|64|128)$/.exec(name)?.[1];
  if (bits !== undefined) return Number(bits) / 8;
  throw new DtypeError(`dtype: expected a name such as float16, int8 or bool, got "${dtype}"`);
}

/** Whether a cast to a float dtype leaves tensors of this one as they are. */
export function isWholeNumber(dtype: string): boolean {
  return /^(u?int\d|[iu]\d|bool)/.test(shortName(dtype));
}

function shortName(dtype: string): string {
  return dtype.replace(/^torch\./, '').toLowerCase();
}
