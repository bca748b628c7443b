/**
 * What every unit of the model stores on its device: the rows of pictures and of `plan.modules`. Sums of
 * `memory-plan.ts` taken apart, nothing of its own.
 */
import type { DeviceName, TensorId } from '@metashard/core';
import { unitsOf } from './partition.js';
import type { PlanModule } from './plan.js';
import type { ProgramFacts } from './program-facts.js';
import type { Segment } from './segments.js';

/**
 * One entry per unit and device, in order of execution; a device's entries add up to its `weightsBytes` and
 * `kvCacheBytes`.
 */
export function moduleBytes(
  facts: ProgramFacts,
  blockPaths: ReadonlySet<string>,
  segments: readonly Segment[],
  streamedOps: ReadonlyMap<number, DeviceName> = new Map(),
): PlanModule[] {
  const units = unitsOf(facts, blockPaths);
  const unitOf = new Int32Array(facts.program.ops.length).fill(-1);
  for (const [u, unit] of units.entries()) for (const op of unit.ops) unitOf[op] = u;
  const entries = new Entries();
  const stored = new Map<DeviceName, Set<TensorId>>();
  for (const { device, ops } of segments) {
    const seen = stored.get(device) ?? new Set<TensorId>();
    stored.set(device, seen);
    const indices = ops.map((op) => facts.producer[op.outputs[0] as number] as number);
    // Ops that every segment computes for itself (rope tables) belong to no unit: to the segment's first, then.
    const first = unitOf[indices.find((index) => unitOf[index] !== -1) ?? 0] as number;
    for (const [i, op] of ops.entries()) {
      const index = indices[i] as number;
      const own = unitOf[index] as number;
      const path = units[own === -1 ? first : own]?.module ?? op.module;
      // An op makes its unit's entry also where all weights of it are an earlier unit's.
      const holder = entries.of(streamedOps.get(index) ?? device, path);
      for (const id of op.inputs) {
        const storage = facts.storageOf(id);
        if (storage < 0 || seen.has(storage)) continue;
        const kind = facts.program.tensors[storage]?.kind;
        if (kind === 'weight') holder.weightsBytes += facts.bytesOf(storage);
        else if (kind === 'constant') entries.of(device, path).weightsBytes += facts.bytesOf(storage);
        else if (kind === 'cache') entries.of(device, path).kvCacheBytes += facts.bytesOf(storage);
        else continue;
        seen.add(storage);
      }
    }
  }
  return withoutVisits(entries.all);
}

/** Entries by device and path, in the order in which they were first asked for. */
class Entries {
  readonly all: PlanModule[] = [];
  readonly #byDevice = new Map<DeviceName, Map<string, PlanModule>>();

  of(device: DeviceName, path: string): PlanModule {
    let byPath = this.#byDevice.get(device);
    if (byPath === undefined) {
      byPath = new Map();
      this.#byDevice.set(device, byPath);
    }
    let entry = byPath.get(path);
    if (entry === undefined) {
      entry = { path, device, weightsBytes: 0, kvCacheBytes: 0 };
      byPath.set(path, entry);
      this.all.push(entry);
    }
    return entry;
  }
}

/**
 * A unit whose ops visit another device without storing anything there (the rows chosen for the head) is listed where
 * it lives only.
 */
function withoutVisits(entries: readonly PlanModule[]): PlanModule[] {
  const stores = ({ weightsBytes, kvCacheBytes }: PlanModule): boolean => weightsBytes + kvCacheBytes > 0;
  const stored = new Set(entries.filter(stores).map(({ path }) => path));
  return entries.filter((entry) => stores(entry) || !stored.has(entry.path));
}
