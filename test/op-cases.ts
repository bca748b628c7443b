/**
 * The case table: every op × dtypes × shapes × layouts with seeded inputs, nasty ones among them (no rows, one row, sizes that are multiples of
 * nothing, NaN, infinities, huge and denormal values, strided and misaligned views), and how far a backend may be off. Used on every backend
 * (run-op-case.ts runs a case). A new op adds its cases to the group it belongs to; a test fails while it has none.
 */
import { caseGroup, type OpCase } from './op-case.js';
import { addAttention, addInt8Caches } from './op-cases-attention.js';
import { addCasts, addElementwise } from './op-cases-elementwise.js';
import {
  addInt8Embedding,
  addInt8Products,
  addInt8Quantize,
  addInt8WeightLinear,
  addLinear,
  addWeights,
} from './op-cases-matrix.js';
import { addRope, addRowOps, addSelection } from './op-cases-rows.js';

export { type BuiltCase, type OpCase, Random } from './op-case.js';

const GROUPS = [
  addRowOps,
  addElementwise,
  addCasts,
  addLinear,
  addInt8Quantize,
  addInt8Products,
  addWeights,
  addAttention,
  addRope,
  addSelection,
  addInt8WeightLinear,
  addInt8Embedding,
];

let cases: readonly OpCase[] | undefined;

/** Cases that the CPU backend alone has. */
export const cpuOnlyCases = (): readonly OpCase[] => caseGroup(20_000, addInt8Caches);

/** All cases of every backend, in a fixed order. */
export function opCases(): readonly OpCase[] {
  cases ??= GROUPS.flatMap((fill, group) => caseGroup(1000 * (group + 1), fill));
  return cases;
}
