/**
 * `weight_format` of bitsandbytes' 8-bit checkpoints: how the int8 weight is laid out. Since its version 0.45 only rows
 * are in use; 0.39 to 0.43 wrote words.
 */
import type { StateValue } from './state-dict.js';

const FORMATS = ['row', 'col32', 'col_turing', 'col_ampere'] as const;

/** What is wrong with a `weight_format` (a one-element tensor, a number or a word), or null when it says rows. */
export function weightFormatProblem(value: StateValue): string | null {
  const code = typeof value === 'object' ? (value.isMeta ? 0 : value.item()) : value;
  const name = typeof code === 'number' ? FORMATS[code] : FORMATS.find((format) => format === code);
  if (name === undefined) return `expected a supported weight format, got ${JSON.stringify(code)}`;
  return name === 'row' ? null : `expected "row", the only supported weight format, got "${name}"`;
}
