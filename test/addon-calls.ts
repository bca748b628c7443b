/**
 * What the tests of the native addon share: the addon over the CPU backend, contexts that are closed after each test,
 * what a call threw, and tensors as the words that programs and calls take.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DTYPES, type DType, native, opSignature } from '@metashard/core';
import { afterAll, afterEach } from 'vitest';

export const PLUGIN = fileURLToPath(new URL('../packages/cpu/build/Release/metashard_cpu.so', import.meta.url));
export const ADDON = fileURLToPath(new URL('../packages/core/build/Release/metashard_core.node', import.meta.url));
export const MIB = 1024 * 1024;
export const EMPTY = new Float64Array(0);
export const ADD = opSignature('add').code;

export const addon = native();
addon.loadBackend('cpu', PLUGIN);

const opened: number[] = [];
afterEach(() => {
  for (const context of opened.splice(0)) tryCall(() => addon.closeContext(context));
});

/** A context that is closed after the test. */
export function openContext(budgetBytes = 0, device = 0): number {
  const context = addon.openContext('cpu', device, budgetBytes);
  opened.push(context);
  return context;
}

/** A folder that is deleted after the file's tests. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'metashard-addon-'));
  afterAll(() => rmSync(folder, { recursive: true }));
  return folder;
}

export type Thrown = Error & { status?: number; nativeCode?: number; line?: number };

/** What a call threw, or undefined. */
export function tryCall(run: () => unknown): Thrown | undefined {
  try {
    run();
  } catch (error) {
    return error as Error;
  }
  return undefined;
}

/** A seeded generator of numbers in [0, 1): Park & Miller's "minimal standard" (1988). */
export function randomNumbers(seed: number): () => number {
  let state = seed % 2147483647 || 1;
  return () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
}

/** A tensor in a buffer; strides are row-major unless given. */
export interface Words {
  buffer: number;
  offset?: number;
  dtype?: DType;
  packed?: boolean;
  shape: number[];
  strides?: number[];
}

function shapeWords({ dtype = 'float32', packed = false, shape, strides }: Words): number[] {
  const rowMajor = shape.map((_, i) => shape.slice(i + 1).reduce((product, dim) => product * dim, 1));
  const four = (list: readonly number[]) => [0, 1, 2, 3].map((i) => list[i] ?? 0);
  return [DTYPES[dtype].code, packed ? 1 : 0, shape.length, ...four(shape), ...four(strides ?? rowMajor)];
}

/** TENSOR_WORDS encodings of tensors; null is an absent one. */
export function tensors(...list: (Words | null)[]): Float64Array {
  return Float64Array.from(
    list.flatMap((words) =>
      words === null ? new Array<number>(13).fill(0) : [words.buffer, words.offset ?? 0, ...shapeWords(words)],
    ),
  );
}

/** A program's tensor in a buffer. */
export const inBuffer = (words: Words): number[] => [0, words.buffer, words.offset ?? 0, ...shapeWords(words)];
/** A program's tensor in the binding of this number. */
export const inBinding = (words: Words): number[] => [1, words.buffer, words.offset ?? 0, ...shapeWords(words)];

/** So many float32 from a byte offset on. */
export function readFloats(buffer: number, count: number, offset = 0): number[] {
  const values = new Float32Array(count);
  addon.read(buffer, offset, values);
  return [...values];
}

/** A new buffer of these float32. */
export function floatsIn(context: number, values: readonly number[]): number {
  const buffer = addon.alloc(context, values.length * 4, 0);
  addon.write(buffer, 0, Float32Array.from(values));
  return buffer;
}

/** What a program's symbols are: so many tokens, one sequence, one output. */
export const dims = (tokens: number): Int32Array => Int32Array.of(tokens, 1, 1);
