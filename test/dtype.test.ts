/** The dtype table, and float16 and bfloat16 conversion against exhaustive tables built another way. */
import {
  bfloat16ArrayToFloat32,
  bfloat16BitsToFloat32,
  DTYPES,
  type DType,
  DtypeError,
  dtypeBytes,
  dtypeOfSafetensors,
  float16ArrayToFloat32,
  float16BitsToFloat32,
  float32ToBfloat16Bits,
  float32ToFloat16Bits,
  isDType,
  parseDType,
} from '@metashard/core';
import { describe, expect, it } from 'vitest';

const view = new DataView(new ArrayBuffer(4));
function floatOf(bits: number): number {
  view.setUint32(0, bits);
  return view.getFloat32(0);
}
function bitsOf(value: number): number {
  view.setFloat32(0, value);
  return view.getUint32(0);
}
/** The next float32 away from zero (step 1) or towards it (step -1). */
const nextFloat = (value: number, step: 1 | -1): number => floatOf(bitsOf(value) + step);

/**
 * A float16's value by moving its bits to float32's place and scaling the exponent by 2^(127 - 15); finite ones only.
 */
function halfValue(bits: number): number {
  const magnitude = floatOf((bits & 0x7fff) << 13) * 2 ** 112;
  return bits & 0x8000 ? -magnitude : magnitude;
}

describe('dtypes', () => {
  it('has one table', () => {
    const widths = Object.entries(DTYPES).map(([name, { bytes, safetensors }]) => `${name} ${bytes} ${safetensors}`);
    expect(widths).toEqual([
      'float32 4 F32',
      'float16 2 F16',
      'bfloat16 2 BF16',
      'int8 1 I8',
      'uint8 1 U8',
      'int32 4 I32',
      'int64 8 I64',
      'bool 1 BOOL',
    ]);
    for (const [name, { safetensors }] of Object.entries(DTYPES)) expect(dtypeOfSafetensors(safetensors)).toBe(name);
    expect(Object.values(DTYPES).map(({ code }) => code)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  });

  it('reads both spellings and refuses others', () => {
    expect(parseDType('torch.bfloat16')).toBe('bfloat16');
    expect(parseDType('float16')).toBe('float16');
    expect(dtypeBytes('int64' satisfies DType, 3)).toBe(24);
    expect(dtypeOfSafetensors('F64')).toBeUndefined();
    expect(isDType('toString')).toBe(false);
    for (const name of ['half', 'float64', '', '__proto__', 'torch.'])
      expect(() => parseDType(name)).toThrow(DtypeError);
  });
});

describe('float16', () => {
  it('reads and writes all 65,536 values', () => {
    const all = float16ArrayToFloat32(Uint16Array.from({ length: 65536 }, (_, i) => i));
    for (let bits = 0; bits < 65536; bits++) {
      const value = float16BitsToFloat32(bits);
      if (!Object.is(all[bits], value)) throw new Error(`the table differs at ${bits}`);
      if ((bits & 0x7c00) === 0x7c00) {
        const expected =
          bits & 0x3ff ? Number.NaN : bits & 0x8000 ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
        if (!Object.is(value, expected)) throw new Error(`${bits}: ${value}`);
      } else if (!Object.is(value, halfValue(bits))) throw new Error(`${bits}: ${value}`);
      const back = float32ToFloat16Bits(value);
      if (Number.isNaN(value) ? !Number.isNaN(float16BitsToFloat32(back)) : back !== bits)
        throw new Error(`${bits}: ${back}`);
    }
  });

  it('rounds to the nearest, ties to even, between every two neighbours', () => {
    for (let bits = 0; bits < 0x7c00; bits++) {
      // Above the largest value the next step of the grid is 65536, which becomes infinity (0x7c00).
      const [low, high] = [halfValue(bits), bits + 1 === 0x7c00 ? 65536 : halfValue(bits + 1)];
      const middle = (low + high) / 2; // exact in float32
      const even = bits % 2 === 0 ? bits : bits + 1;
      for (const sign of [0, 0x8000]) {
        const give = (value: number): number => float32ToFloat16Bits(sign === 0 ? value : -value) - sign;
        const got = [give(middle), give(nextFloat(middle, -1)), give(nextFloat(middle, 1))];
        if (got.join() !== [even, bits, bits + 1].join()) throw new Error(`around ${middle}: ${got}`);
      }
    }
  });

  it('overflows to infinity from 65520 up, as IEEE, and keeps NaN and signed zeros', () => {
    expect(float32ToFloat16Bits(65519.99)).toBe(0x7bff);
    expect(float32ToFloat16Bits(65520)).toBe(0x7c00);
    expect(float32ToFloat16Bits(-65520)).toBe(0xfc00);
    expect(float32ToFloat16Bits(1e30)).toBe(0x7c00);
    expect(float32ToFloat16Bits(Number.NEGATIVE_INFINITY)).toBe(0xfc00);
    expect(float32ToFloat16Bits(Number.NaN) & 0x7fff).toBeGreaterThan(0x7c00);
    expect([float32ToFloat16Bits(0), float32ToFloat16Bits(-0)]).toEqual([0, 0x8000]);
  });

  it('has denormals: half of the smallest is zero, a little more is the smallest', () => {
    expect(float16BitsToFloat32(1)).toBe(2 ** -24);
    expect(float32ToFloat16Bits(2 ** -25)).toBe(0);
    expect(float32ToFloat16Bits(nextFloat(2 ** -25, 1))).toBe(1);
    expect(float32ToFloat16Bits(1.5 * 2 ** -24)).toBe(2);
    expect(float32ToFloat16Bits(-(2 ** -24))).toBe(0x8001);
    expect(float32ToFloat16Bits(nextFloat(2 ** -14, -1))).toBe(0x400);
  });
});

describe('bfloat16', () => {
  it('reads and writes all 65,536 values as the upper half of a float32', () => {
    const all = bfloat16ArrayToFloat32(Uint16Array.from({ length: 65536 }, (_, i) => i));
    for (let bits = 0; bits < 65536; bits++) {
      const value = bfloat16BitsToFloat32(bits);
      const same = Object.is(value, floatOf(bits * 65536)) && Object.is(all[bits], value);
      const back = float32ToBfloat16Bits(value);
      if (!same || (Number.isNaN(value) ? !Number.isNaN(bfloat16BitsToFloat32(back)) : back !== bits))
        throw new Error(`${bits}`);
    }
  });

  it('rounds to the nearest, ties to even, between every two neighbours', () => {
    for (let bits = 0; bits < 0x7f80; bits++) {
      const even = bits % 2 === 0 ? bits : bits + 1;
      const tie = bits * 65536 + 0x8000; // as float32 bits
      for (const sign of [0, 0x8000]) {
        const give = (float32Bits: number): number => float32ToBfloat16Bits(floatOf(float32Bits + sign * 65536)) - sign;
        const got = [give(tie), give(tie - 1), give(tie + 1)];
        if (got.join() !== [even, bits, bits + 1].join()) throw new Error(`at ${bits}: ${got}`);
      }
    }
  });

  it('does not overflow where float16 does', () => {
    expect(bfloat16BitsToFloat32(float32ToBfloat16Bits(65520))).toBe(65536);
    expect(bfloat16BitsToFloat32(float32ToBfloat16Bits(1e38))).toBeLessThan(Number.POSITIVE_INFINITY);
    expect(float32ToBfloat16Bits(3.4028234663852886e38)).toBe(0x7f80);
  });
});
