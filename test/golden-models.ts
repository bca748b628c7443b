/**
 * The golden checkpoints of test/fixtures/models and what transformers computed for them, read for end-to-end tests.
 * Not a test itself.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

export const MODELS = fileURLToPath(new URL('./fixtures/models/', import.meta.url));
export const SHIPPED = fileURLToPath(new URL('../models/', import.meta.url));

export interface Golden {
  folder: string;
  tensors: Map<string, { shape: number[]; data: Float32Array | number[] }>;
  greedy: number[];
}

/** Reads a small safetensors file whole: F32 as Float32Array, I64 as numbers. */
export function readWhole(file: string): Golden['tensors'] {
  const bytes = readFileSync(file);
  const header = Number(bytes.readBigUInt64LE(0));
  const entries = JSON.parse(bytes.subarray(8, 8 + header).toString()) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors: Golden['tensors'] = new Map();
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(entries)) {
    if (name === '__metadata__') continue;
    const raw = Uint8Array.prototype.slice.call(
      bytes,
      8 + header + data_offsets[0],
      8 + header + data_offsets[1],
    ).buffer;
    if (dtype === 'F32') tensors.set(name, { shape, data: new Float32Array(raw) });
    else if (dtype === 'I64') tensors.set(name, { shape, data: Array.from(new BigInt64Array(raw), Number) });
  }
  return tensors;
}

export function readGolden(name: string): Golden {
  const folder = `${MODELS}${name}`;
  const { greedy } = JSON.parse(readFileSync(`${folder}/expected.json`, 'utf8')) as { greedy: number[] };
  return { folder, greedy, tensors: readWhole(`${folder}/expected.safetensors`) };
}

/** An integer tensor [B, T] as rows. */
export function rowsOf(golden: Golden, name: string): number[][] {
  const { shape, data } = golden.tensors.get(name) as { shape: number[]; data: number[] };
  const [B, T] = shape as [number, number];
  return Array.from({ length: B }, (_, b) => data.slice(b * T, (b + 1) * T));
}

export function floats(golden: Golden, name: string): Float32Array {
  return golden.tensors.get(name)?.data as Float32Array;
}

export function standardDeviation(values: ArrayLike<number>): number {
  let [sum, squares] = [0, 0];
  for (let i = 0; i < values.length; i++) sum += values[i] as number;
  const mean = sum / values.length;
  for (let i = 0; i < values.length; i++) squares += ((values[i] as number) - mean) ** 2;
  return Math.sqrt(squares / values.length);
}

/** Largest difference in standard deviations of `want`. */
export function distance(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  let largest = 0;
  for (let i = 0; i < want.length; i++) {
    const difference = Math.abs((got[i] as number) - (want[i] as number));
    if (Number.isNaN(difference)) return Number.POSITIVE_INFINITY;
    if (difference > largest) largest = difference;
  }
  return largest / standardDeviation(want);
}

/** ‖got - want‖ / ‖want‖. */
export function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  let [difference, norm] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    difference += ((got[i] as number) - (want[i] as number)) ** 2;
    norm += (want[i] as number) ** 2;
  }
  return Math.sqrt(difference / norm);
}
