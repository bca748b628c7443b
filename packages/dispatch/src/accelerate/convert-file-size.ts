/** Sizes as accelerate writes them. metashard's own options are read by `parseBytes` of @metashard/core. */
import { ConfigError } from '@metashard/core';

const BINARY: Readonly<Record<string, number>> = { KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30 };
const DECIMAL: Readonly<Record<string, number>> = { KB: 1e3, MB: 1e6, GB: 1e9 };

/**
 * Bytes of a size: a whole number as it is, or a number with KiB, MiB, GiB, KB, MB or GB in any case. As in
 * accelerate, a decimal unit that ends in a lowercase b counts bits: `8kb` is 1000. Fractions of a byte are dropped.
 * Throws ConfigError.
 */
export function convertFileSizeToInt({ size }: { size: number | string }): number {
  const bytes = typeof size === 'number' ? size : sizeInWords(size);
  if (bytes === undefined || !Number.isSafeInteger(bytes) || bytes < 0) {
    throw new ConfigError(`size: expected a whole number of bytes or a size with a unit, got ${JSON.stringify(size)}`, {
      hint: 'write bytes, or a number with KiB, MiB, GiB, KB, MB or GB, such as 5.0GB',
    });
  }
  return bytes;
}

function sizeInWords(size: string): number | undefined {
  const match = /^\s*\+?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*([kmg]i?b)$/i.exec(size);
  if (match === null) return undefined;
  const [, digits = '', exponent = '', unit = ''] = match;
  const amount = Number(digits + exponent);
  const binary = BINARY[unit.toUpperCase()];
  if (binary !== undefined) return Math.trunc(amount * binary);
  const units = Math.trunc(amount * (DECIMAL[unit.toUpperCase()] as number));
  return unit.endsWith('b') ? Math.floor(units / 8) : units;
}
