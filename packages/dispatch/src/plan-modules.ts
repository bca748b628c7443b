/** What every unit of the model stores on its device: the rows of pictures and of `plan.modules`. Sums of `memory-plan.ts` taken apart, nothing of its own. */
import type { DeviceName, TensorId } from '@metashard/core';
import { unitsOf } from './partition.js';
import type { PlanModule } from './plan.js';
import type { ProgramFacts } from './program-facts.js';
import type { Segment } from './segments.js';

/** One entry per unit and device, in order of execution; a device's entries add up to its `weightsBytes` and `kvCacheBytes`. */
export function moduleBytes(
  facts: ProgramFacts,
  blockPaths: ReadonlySet<string>,
  segments: readonly Segment[],
  streamedOps: ReadonlySet<number> = new Set(),
): PlanModule[] {
  const units = unitsOf(facts, blockPaths);
  const unitOf = new Int32Array(facts.program.ops.length).fill(-1);
  for (const [u, unit] of units.entries()) for (const op of unit.ops) unitOf[op] = u;
  const stored = new Map<DeviceName, Set<TensorId>>();
  const entries = new Map<string, PlanModule>();
  for (const { device, ops } of segments) {
    const seen = stored.get(device) ?? new Set<TensorId>();
    stored.set(device, seen);
    const indices = ops.map((op) => facts.producer[op.outputs[0] as number] as number);
    // Ops that every segment computes for itself (rope tables) belong to no unit: to the segment's first, then.
    const first = unitOf[indices.find((index) => unitOf[index] !== -1) ?? 0] as number;
    for (const [i, op] of ops.entries()) {
      const own = unitOf[indices[i] as number] as number;
      const path = units[own === -1 ? first : own]?.module ?? op.module;
      const entryOf = (holder: DeviceName): PlanModule => {
        const key = `${holder} ${path}`;
        const entry = entries.get(key) ?? { path, device: holder, weightsBytes: 0, kvCacheBytes: 0 };
        entries.set(key, entry);
        return entry;
      };
      const weightsOn = streamedOps.has(indices[i] as number) ? 'disk' : device;
      entryOf(weightsOn); // also where all its weights are an earlier unit's
      for (const id of op.inputs)
        if (id >= 0)
          count(
            facts,
            () => entryOf(weightsOn),
            () => entryOf(device),
            seen,
            facts.storageOf(id),
          );
    }
  }
  return withoutVisits([...entries.values()]);
}

function count(
  { program, bytes }: ProgramFacts,
  holder: () => PlanModule,
  computer: () => PlanModule,
  seen: Set<TensorId>,
  id: TensorId,
): void {
  const kind = program.tensors[id]?.kind;
  if ((kind !== 'weight' && kind !== 'constant' && kind !== 'cache') || seen.has(id)) return;
  seen.add(id);
  if (kind === 'cache') computer().kvCacheBytes += bytes[id] as number;
  else holder().weightsBytes += bytes[id] as number;
}

/** A unit whose ops visit another device without storing anything there (the rows chosen for the head) is listed where it lives only. */
function withoutVisits(entries: readonly PlanModule[]): PlanModule[] {
  const stores = ({ weightsBytes, kvCacheBytes }: PlanModule): boolean => weightsBytes + kvCacheBytes > 0;
  const stored = new Set(entries.filter(stores).map(({ path }) => path));
  return entries.filter((entry) => stores(entry) || !stored.has(entry.path));
}
