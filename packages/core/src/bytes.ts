/** Sizes in words: "70GiB" is 70 · 2^30 bytes, "70GB" 70 · 10^9. Prints sizes the way tables show them. */
import { ConfigError } from './errors.js';

const UNITS: Readonly<Record<string, number>> = {
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
};

/** Reads a size. A number is bytes. Throws ConfigError naming `where`. */
export function parseBytes(value: string | number, where = 'size'): number {
  if (typeof value === 'number' && Number.isFinite(value) && value >= 0) return Math.floor(value);
  if (typeof value === 'string') {
    const match = /^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b)\s*$/i.exec(value);
    const unit = match === null ? undefined : UNITS[(match[2] as string).toLowerCase()];
    if (match !== null && unit !== undefined) return Math.floor(Number(match[1]) * unit);
  }
  throw new ConfigError(`${where}: expected a size such as 70GiB, got ${JSON.stringify(value)}`, {
    hint: 'write a number of bytes, or a number with KiB, MiB, GiB, TiB, KB, MB, GB or TB',
  });
}

/** 1536 → "1.5 KiB". One decimal, binary units. */
export function formatBytes(bytes: number): string {
  if (!Number.isFinite(bytes)) return 'unlimited';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}
