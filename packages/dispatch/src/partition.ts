/**
 * Contiguous partitions of a model's units (blocks and what stands between them) over devices in a given order. Exact,
 * by dynamic programming.
 * A unit is what a map never cuts: a no-split block, or a leaf module outside of blocks.
 */
import type { Program, TensorId } from '@metashard/core';
import { planArena } from './memory-plan.js';
import type { ProgramFacts } from './program-facts.js';

export interface Unit {
  /** Module path, also the key in a device map. */
  module: string;
  ops: number[];
  weights: TensorId[];
  /** Own bytes: weights at their true width, KV cache. */
  weightsBytes: number;
  kvCacheBytes: number;
  /** Arena and scratch this unit alone needs. */
  activationsBytes: number;
  scratchBytes: number;
}

const measured = new WeakMap<ProgramFacts, { blockPaths: ReadonlySet<string>; units: readonly Unit[] }>();

/**
 * A Program's units; the same array for the same facts and blocks. `blockPaths`: paths of no-split modules. Ops of
 * containers join the unit before them.
 */
export function unitsOf(facts: ProgramFacts, blockPaths: ReadonlySet<string>): readonly Unit[] {
  const known = measured.get(facts);
  if (known?.blockPaths === blockPaths) return known.units;
  const units = groupUnits(facts, blockPaths);
  measured.set(facts, { blockPaths, units });
  return units;
}

function groupUnits(facts: ProgramFacts, blockPaths: ReadonlySet<string>): Unit[] {
  const { program, rematerialized: free } = facts;
  const units: Unit[] = [];
  const hasWeights = new Set<string>();
  for (const op of program.ops) {
    if (op.inputs.some((id) => id >= 0 && program.tensors[facts.storageOf(id)]?.kind === 'weight'))
      hasWeights.add(op.module);
  }
  for (const [index, op] of program.ops.entries()) {
    if (free.has(index)) continue;
    const module = blockOf(op.module, blockPaths);
    const last = units.at(-1);
    const joins =
      last !== undefined && (last.module === module || (!blockPaths.has(module) && !hasWeights.has(op.module)));
    if (joins) last.ops.push(index);
    else
      units.push({
        module,
        ops: [index],
        weights: [],
        weightsBytes: 0,
        kvCacheBytes: 0,
        activationsBytes: 0,
        scratchBytes: 0,
      });
  }
  for (const unit of units) measureUnit(facts, unit);
  return units;
}

/** The no-split module a path lies in, or the path itself. */
export function blockOf(module: string, blockPaths: ReadonlySet<string>): string {
  for (let end = module.length; end > 0; end = module.lastIndexOf('.', end - 1)) {
    const prefix = module.slice(0, end);
    if (blockPaths.has(prefix)) return prefix;
  }
  return module;
}

function measureUnit(facts: ProgramFacts, unit: Unit): void {
  const { program } = facts;
  const ops = unit.ops.map((index) => program.ops[index] as Program['ops'][number]);
  const seen = new Set<TensorId>();
  for (const op of ops) {
    for (const id of op.inputs) {
      if (id < 0) continue;
      const storage = facts.storageOf(id);
      if (seen.has(storage)) continue;
      seen.add(storage);
      const kind = program.tensors[storage]?.kind;
      if (kind === 'weight') {
        unit.weights.push(storage);
        unit.weightsBytes += facts.bytesOf(storage);
      } else if (kind === 'cache') {
        unit.kvCacheBytes += facts.bytesOf(storage);
      }
    }
  }
  unit.activationsBytes = planArena(facts, ops, new Set()).bytes;
  for (const index of unit.ops) unit.scratchBytes = Math.max(unit.scratchBytes, facts.scratch[index] as number);
}

/**
 * Sums over ranges of units in constant time (plus one step a tie): bytes of units i … j-1, a weight shared by two of
 * them counted once.
 */
export class UnitRanges implements Ranges {
  readonly #bytes: number[] = [0];
  readonly #ties: { first: number; second: number; bytes: number }[] = [];

  constructor(
    facts: ProgramFacts,
    readonly units: readonly Unit[],
  ) {
    const lastUnitOf = new Map<TensorId, number>();
    for (const [i, unit] of units.entries()) {
      this.#bytes.push((this.#bytes[i] as number) + unit.weightsBytes + unit.kvCacheBytes);
      for (const id of unit.weights) {
        const first = lastUnitOf.get(id);
        if (first !== undefined) this.#ties.push({ first, second: i, bytes: facts.bytesOf(id) });
        lastUnitOf.set(id, i);
      }
    }
  }

  /** Weights and KV cache of units `from` … `to` - 1. */
  bytes(from: number, to: number): number {
    let total = (this.#bytes[to] as number) - (this.#bytes[from] as number);
    for (const tie of this.#ties) if (tie.first >= from && tie.second < to) total -= tie.bytes;
    return total;
  }
}

export interface Ranges {
  readonly units: readonly Unit[];
  /** Weights and KV cache of units `from` … `to` - 1; grows with the range. */
  bytes(from: number, to: number): number;
}

export interface PartitionProblem {
  ranges: Ranges;
  /** Bytes each device offers for weights and KV cache, in the devices' order. */
  capacities: readonly number[];
}

/**
 * The contiguous partition with the smallest largest share of bytes: `ends[d]` is the unit after device d's last (equal
 * ends: the device is left empty).
 * Of equal optima the one with the fewest devices, of these the one that fills earlier devices. undefined when nothing
 * fits.
 * share(d, j) = min over i of max(share(d-1, i), bytes(i, j)), then used(d, j) under that share as a limit: O(devices ·
 * units²), exact.
 */
export function balancedPartition({ ranges, capacities }: PartitionProblem): number[] | undefined {
  const share = smallestShare({ ranges, capacities });
  if (!Number.isFinite(share)) return undefined;
  return fewestDevices({ ranges, capacities: capacities.map((capacity) => Math.min(capacity, share)) });
}

/** The smallest largest share of any partition; infinite when none fits. */
function smallestShare({ ranges, capacities }: PartitionProblem): number {
  const count = ranges.units.length;
  let row = new Float64Array(count + 1).fill(Number.POSITIVE_INFINITY);
  row[0] = 0;
  for (const capacity of capacities) {
    const next = row.slice();
    for (let j = 1; j <= count; j++) {
      let best = next[j] as number;
      for (let i = j - 1; i >= 0; i--) {
        const bytes = ranges.bytes(i, j);
        if (bytes > capacity || bytes >= best) break; // shares only grow further back
        best = Math.min(best, Math.max(row[i] as number, bytes));
      }
      next[j] = best;
    }
    row = next;
  }
  return row[count] as number;
}

/**
 * The ends of the partition within the capacities that uses the fewest devices; of equals the one whose last devices
 * take least. It exists.
 */
function fewestDevices({ ranges, capacities }: PartitionProblem): number[] {
  const count = ranges.units.length;
  let row = new Int32Array(count + 1).fill(UNREACHED);
  row[0] = 0;
  const starts: Int32Array[] = [];
  for (const capacity of capacities) {
    const next = row.slice();
    const start = Int32Array.from(next.keys());
    for (let j = 1; j <= count; j++) {
      for (let i = j - 1; i >= 0 && ranges.bytes(i, j) <= capacity; i--) {
        const used = (row[i] as number) + 1;
        // A later start at equal cost leaves more to earlier devices.
        if (used >= (next[j] as number)) continue;
        next[j] = used;
        start[j] = i;
      }
    }
    starts.push(start);
    row = next;
  }
  const ends: number[] = [];
  for (let d = capacities.length - 1, j = count; d >= 0; d--) {
    ends[d] = j;
    j = starts[d]?.[j] as number;
  }
  return ends;
}

const UNREACHED = 2 ** 30;

/** Fills devices in order, each with as many units as it takes. undefined when units are left over. */
export function sequentialPartition({ ranges, capacities }: PartitionProblem): number[] | undefined {
  const count = ranges.units.length;
  const ends: number[] = [];
  let from = 0;
  for (const capacity of capacities) {
    let to = from;
    while (to < count && ranges.bytes(from, to + 1) <= capacity) to++;
    ends.push(to);
    from = to;
  }
  return from === count ? ends : undefined;
}

/**
 * `balanced` over all devices but the first, which gets only what the others cannot take: the smallest head that lets
 * the rest fit.
 */
export function balancedLow0Partition({ ranges, capacities }: PartitionProblem): number[] | undefined {
  if (capacities.length === 1) return balancedPartition({ ranges, capacities });
  const [first, ...rest] = capacities as [number, ...number[]];
  for (let head = 0; head <= ranges.units.length && ranges.bytes(0, head) <= first; head++) {
    const tail = balancedPartition({ ranges: new OffsetRanges(ranges, head), capacities: rest });
    if (tail !== undefined) return [head, ...tail.map((end) => end + head)];
  }
  return undefined;
}

/** The units from `offset` on. */
class OffsetRanges implements Ranges {
  readonly units: readonly Unit[];
  constructor(
    readonly base: Ranges,
    readonly offset: number,
  ) {
    this.units = base.units.slice(offset);
  }
  bytes(from: number, to: number): number {
    return this.base.bytes(from + this.offset, to + this.offset);
  }
}
