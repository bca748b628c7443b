/**
 * What a case of the op table (op-cases.ts) is: seeded inputs, outputs to fill, the error allowed. The pieces all
 * groups of cases are made of.
 */
import type { DType, OpName } from '@metashard/core';
import { elements, type HostTensor, hostTensor, type Placement } from './host-tensor.js';

export interface BuiltCase {
  inputs: (HostTensor | null)[];
  outputs: HostTensor[];
  attributes: number[];
}

export interface OpCase {
  readonly name: string;
  readonly op: OpName;
  /** Error allowed, relative to a reference output's magnitude. 0: exact. */
  readonly tolerance: number;
  /** Set where the portable CPU version is exact to so many units in the last place. */
  readonly oracleUlps?: number;
  readonly build: () => BuiltCase;
}

/** mulberry32: the same numbers everywhere. */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }
  /** [0, 1). */
  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }
  integer(end: number): number {
    return Math.floor(this.uniform() * end);
  }
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }
  normals(count: number, scale = 1): Float64Array {
    return Float64Array.from({ length: count }, () => Math.fround(this.normal() * scale));
  }
  integers(count: number, end: number): Float64Array {
    return Float64Array.from({ length: count }, () => this.integer(end));
  }
  /** -128 … 127. */
  bytes(count: number): Float64Array {
    return this.integers(count, 256).map((x) => x - 128);
  }
}

export const floats = (r: Random, dims: number[], placement: Placement = {}, scale = 1): HostTensor =>
  hostTensor(dims, r.normals(elements(dims), scale), placement);
export const bytes = (r: Random, dims: number[], placement: Placement = {}): HostTensor =>
  hostTensor(dims, r.bytes(elements(dims)), { dtype: 'int8', ...placement });
export const ints = (dims: number[], values: ArrayLike<number>): HostTensor =>
  hostTensor(dims, values, { dtype: 'int32' });
export const positive = (r: Random, count: number): HostTensor =>
  hostTensor(
    [count],
    r.normals(count).map((x) => Math.abs(x) + 0.01),
  );
/** Rows `gap` elements apart and shifted by 1, so that nothing is aligned to more than an element. */
export const apart = (columns: number, gap = 3): Placement => ({ strides: [columns + gap, 1], offset: 1 });

/** What breaks careless kernels: every special value, and the edges of float16, of exponentials and of float32. */
export const NASTY = [
  0,
  -0,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
  1e-45,
  -1e-40,
  1.1754944e-38,
  3.4e38,
  -3.4e38,
  1e19,
  -1e20,
  65504,
  65519.996,
  65520,
  -65536,
  2 ** -24,
  2 ** -25,
  3 * 2 ** -26,
  6.1e-5,
  87.5,
  -87.5,
  88.8,
  -104,
  700,
  -700,
  1 + 2 ** -8,
  1 + 3 * 2 ** -9,
  -(1 + 2 ** -11),
  5.9604645e-8,
].map(Math.fround);

export const FLOATS: DType[] = ['float32', 'float16', 'bfloat16'];

/** Adds a case to a group; `build` gets random numbers of its own. */
export type AddCase = (
  op: OpName,
  name: string,
  tolerance: number,
  build: (random: Random) => BuiltCase,
  extra?: Partial<OpCase>,
) => void;

/** Cases of a group; seeds are firstSeed, firstSeed + 1, …. */
export function caseGroup(firstSeed: number, fill: (add: AddCase) => void): OpCase[] {
  const cases: OpCase[] = [];
  fill((op, name, tolerance, build, extra = {}) => {
    const seed = firstSeed + cases.length;
    cases.push({ name: `${op}: ${name}`, op, tolerance, build: () => build(new Random(seed)), ...extra });
  });
  return cases;
}
