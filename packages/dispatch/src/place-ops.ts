/**
 * Where every op of a Program computes and where its weights lie: as an explicit map says, or as a strategy finds it,
 * streaming from disk what fits nowhere. Estimates bytes from above; the exact plan is `plan-program.ts`.
 */
import { DeviceMapError, type DeviceName, type Program, type ProgramOp, parseDevice } from '@metashard/core';
import { DATASHEET_COSTS, expectedUse, stageMs, workOf } from './costs.js';
import { canonicalDeviceMap, deviceOfOps, longestPrefix, type Placement } from './device-map.js';
import type { DeviceBudget } from './devices.js';
import { doesNotFit } from './does-not-fit.js';
import { loadStagingBytes, planArena, STEPS_IN_FLIGHT, samplingBytes } from './memory-plan.js';
import {
  balancedLow0Partition,
  balancedPartition,
  type PartitionProblem,
  sequentialPartition,
  type Unit,
  UnitRanges,
  unitsOf,
} from './partition.js';
import { type PlacementDevice, type Stage, stagesOf } from './placement.js';
import type { DeviceMap, PlacedDeviceMap, Strategy } from './plan.js';
import type { PlanRequest } from './plan-program.js';
import type { ProgramFacts } from './program-facts.js';
import { isTableLookup, READ_AHEAD } from './stream-plan.js';
import { bestTiedPlacement, WithReturningHead } from './tied-head.js';

export interface PlacedOps {
  /** Where each op computes. */
  deviceOfOp: DeviceName[];
  /** Ops whose weights are streamed, and where those lie. */
  streamedOps: Map<number, DeviceName>;
  /** Where each module's weights lie. */
  deviceMap: PlacedDeviceMap;
}

export function placeExplicitly({ deviceMap, modulePaths, devices }: PlanRequest, facts: ProgramFacts): PlacedOps {
  const names = devices.map((device) => device.name);
  const streamer = names.find((name) => parseDevice(name).type === 'cpu');
  const canonical = canonicalDeviceMap(deviceMap as DeviceMap, streamer);
  for (const [prefix, { device, executeOn }] of Object.entries(canonical)) {
    const missing = [device, executeOn].find((name) => name !== 'disk' && !names.includes(name));
    if (missing !== undefined) {
      throw new DeviceMapError(
        `device_map.${prefix}: expected one of the devices ${names.join(', ')}, got ${missing}`,
        {
          hint: `add ${missing} to devices`,
        },
      );
    }
  }
  const computing = Object.fromEntries(Object.entries(canonical).map(([prefix, { executeOn }]) => [prefix, executeOn]));
  const streamedOps = new Map<number, DeviceName>();
  for (const [index, op] of facts.program.ops.entries()) {
    const placed = canonical[longestPrefix(canonical, op.module) ?? ''];
    if (placed !== undefined && placed.device !== placed.executeOn) streamedOps.set(index, placed.device);
  }
  const written = ({ device, executeOn }: Placement): PlacedDeviceMap[string] =>
    executeOn === (device === 'disk' ? streamer : device) ? device : { device, execute_on: executeOn };
  return {
    deviceOfOp: deviceOfOps(facts, computing, modulePaths, names.find((name) => name !== 'disk') as DeviceName),
    streamedOps,
    deviceMap: Object.fromEntries(Object.entries(canonical).map(([prefix, placed]) => [prefix, written(placed)])),
  };
}

/** `spareBytes`: left to every device beside what this file counts on. Throws InsufficientMemoryError. */
export function placeByStrategy(request: PlanRequest, facts: ProgramFacts, spareBytes = 0): PlacedOps {
  const { program, blockPaths } = request;
  const devices = request.devices.filter(({ name }) => name !== 'disk');
  const units = unitsOf(facts, blockPaths);
  const overhead = perDeviceOverhead({ ...request, devices }, facts, units) + spareBytes;
  const capacities = devices.map((device) => device.budgetBytes - device.reserveBytes - overhead);
  const ranges = new UnitRanges(facts, units);
  const place = (capacities: readonly number[]) =>
    fittingOrStreamed({ ...request, devices }, facts, { ranges, capacities }, devices.length < request.devices.length);
  const found = place(capacities);
  if (found === undefined) throw doesNotFit(program, devices, { ranges, capacities }, place);
  const { stages, streamed = { from: units.length, to: units.length } } = found;
  const streamedOps = new Map<number, DeviceName>();
  const deviceOfOp = new Array<DeviceName>(program.ops.length).fill((devices[0] as DeviceBudget).name);
  const deviceMap: Record<string, DeviceName> = {};
  for (const stage of stages) {
    const device = (devices[stage.device] as DeviceBudget).name;
    for (const [u, unit] of units.slice(stage.from, stage.to).entries()) {
      const streams = stage.from + u >= streamed.from && stage.from + u < streamed.to;
      deviceMap[unit.module] = streams && unit.weights.length > 0 ? 'disk' : device;
      for (const op of unit.ops) {
        deviceOfOp[op] = device;
        // Rows are chosen where the head is, which may be elsewhere.
        if (streams && program.ops[op]?.op !== 'select_rows') streamedOps.set(op, 'disk');
      }
    }
  }
  return { deviceOfOp: headRowsWithHead(program, deviceOfOp), streamedOps, deviceMap };
}

interface Found {
  stages: Stage[];
  /** Units whose weights are streamed from disk, and the device that computes them. */
  streamed?: { from: number; to: number };
  streamer?: number;
}

/** Streams from disk only what no placement fits. */
function fittingOrStreamed(
  request: PlanRequest,
  facts: ProgramFacts,
  problem: PartitionProblem,
  hasDisk: boolean,
): Found | undefined {
  const stages = fittingStages(request, facts, problem);
  if (stages !== undefined) return { stages };
  if (!hasDisk) return undefined;
  const spilled = spillToDisk(facts, request.devices, problem);
  // A head that returns to its table, on a device that holds it, is not streamed.
  const whole = WithReturningHead.of(problem.ranges);
  const returning = whole && spillToDisk(facts, request.devices, { ...problem, ranges: whole });
  if (returning === undefined || (returning.stages.length < 2 && spilled !== undefined)) return spilled;
  return { ...returning, stages: whole?.stages(returning.stages) ?? [] };
}

/** Bytes of a unit's weights that a step reads whole: not those it only looks rows up in. */
function bytesReadWhole(facts: ProgramFacts, unit: Unit): number {
  const read = new Set<number>();
  for (const index of unit.ops) {
    const op = facts.program.ops[index] as ProgramOp;
    if (isTableLookup(op.op)) continue;
    for (const id of op.inputs)
      if (facts.program.tensors[facts.storageOf(id)]?.kind === 'weight') read.add(facts.storageOf(id));
  }
  return facts.sum(read);
}

/** The sum of the `count` largest. */
function sumOfLargest(sizes: readonly number[], count: number): number {
  return sizes
    .toSorted((a, b) => b - a)
    .slice(0, count)
    .reduce((sum, size) => sum + size, 0);
}

/**
 * What does not fit is streamed: devices are filled in order, the last CPU keeps room for the portions at work and read ahead and computes the rest from disk.
 * undefined where there is no CPU, or not room enough even so.
 */
function spillToDisk(
  facts: ProgramFacts,
  devices: readonly DeviceBudget[],
  { ranges, capacities }: PartitionProblem,
): Found | undefined {
  const { units } = ranges;
  const streamer = devices.findLastIndex(({ name }) => parseDevice(name).type === 'cpu');
  if (streamer < 0) return undefined;
  const stages: Stage[] = [];
  let from = 0;
  for (const [device, capacity] of capacities.entries()) {
    if (device === streamer) continue;
    let to = from;
    while (to < units.length && ranges.bytes(from, to + 1) <= capacity) to++;
    if (to > from) stages.push({ device, from, to });
    from = to;
  }
  const rest = units.slice(from);
  const cache = rest.reduce((sum, unit) => sum + unit.kvCacheBytes, 0);
  // Whichever of them come to be neighbours once the first are kept.
  const window = sumOfLargest(
    rest.map((unit) => bytesReadWhole(facts, unit)),
    READ_AHEAD + 1,
  );
  let room = (capacities[streamer] as number) - cache - window;
  if (room < 0) return undefined;
  let firstStreamed = from;
  while (firstStreamed < units.length && (units[firstStreamed] as Unit).weightsBytes <= room) {
    room -= (units[firstStreamed] as Unit).weightsBytes;
    firstStreamed++;
  }
  stages.push({ device: streamer, from, to: units.length });
  return { stages, streamed: { from: firstStreamed, to: units.length }, streamer };
}

/** `select_rows` belongs to the unit before it, but runs with the head, so that only the wanted rows pass through it there. */
function headRowsWithHead(program: Program, deviceOfOp: DeviceName[]): DeviceName[] {
  for (const [i, op] of program.ops.entries()) {
    const next = deviceOfOp[i + 1];
    if (op.op === 'select_rows' && next !== undefined) deviceOfOp[i] = next;
  }
  return deviceOfOp;
}

/**
 * Where everything fits. `auto` is the placement that answers soonest, with the tied head where it is or returning to
 * its table; the others spread by bytes in the order given, CUDA devices before the CPU takes what they cannot, and the
 * head returns only where a copy of its table does not fit.
 */
function fittingStages(request: PlanRequest, facts: ProgramFacts, problem: PartitionProblem): Stage[] | undefined {
  const whole = WithReturningHead.of(problem.ranges);
  if (request.deviceMap === 'auto') {
    const devices = placementDevices(request, facts, problem);
    return bestTiedPlacement({ ranges: problem.ranges, devices, objective: request.objective ?? 'latency' });
  }
  const solve = {
    balanced: balancedPartition,
    balanced_low_0: balancedLow0Partition,
    sequential: sequentialPartition,
  }[request.deviceMap as Exclude<Strategy, 'auto'>];
  const spread = (capacities: readonly number[], over: typeof solve): Stage[] | undefined => {
    const ends = over({ ranges: problem.ranges, capacities });
    if (ends !== undefined || whole === undefined) return ends && stagesOf(ends);
    const returning = over({ ranges: whole, capacities });
    return returning && whole.stages(stagesOf(returning));
  };
  const gpus = request.devices.findIndex((device) => parseDevice(device.name).type !== 'cuda');
  if (gpus <= 0) return spread(problem.capacities, solve);
  return spread(problem.capacities.slice(0, gpus), solve) ?? spread(problem.capacities, sequentialPartition);
}

/** What each device would take for any run of units, in milliseconds of the expected request. */
function placementDevices(
  { devices, maxBatchSize, expectedUse: given, costs = DATASHEET_COSTS }: PlanRequest,
  facts: ProgramFacts,
  { ranges, capacities }: PartitionProblem,
): PlacementDevice[] {
  const use = expectedUse(given, maxBatchSize);
  const [bytes, operations] = [[0], [0]];
  for (const [i, unit] of ranges.units.entries()) {
    const work = workOf(
      facts,
      unit.ops.map((index) => facts.program.ops[index] as ProgramOp),
      (unit.kvCacheBytes * use.sequences) / maxBatchSize,
    );
    bytes.push((bytes[i] as number) + work.decodeBytes);
    operations.push((operations[i] as number) + work.operations);
  }
  const between = (sums: readonly number[], from: number, to: number): number =>
    (sums[to] as number) - (sums[from] as number);
  return devices.map((device, d) => {
    const own = costs.of(device.name);
    const capacity = capacities[d] as number;
    return {
      capacity,
      key: `${capacity},${own.bandwidth},${own.rate},${own.hopMs}`,
      hopMs: own.hopMs * (use.newTokens + 1),
      stageMs: (from, to) =>
        stageMs({ decodeBytes: between(bytes, from, to), operations: between(operations, from, to) }, own, use).request,
    };
  });
}

/** What all ops take in turn on one device: whatever run of units a device has, it needs hardly more. */
function wholeArenaBytes(facts: ProgramFacts): number {
  let bytes = wholeArenas.get(facts);
  if (bytes === undefined) {
    bytes = planArena(facts, facts.program.ops, new Set()).bytes;
    wholeArenas.set(facts, bytes);
  }
  return bytes;
}
const wholeArenas = new WeakMap<ProgramFacts, number>();

/**
 * Bytes every device may need besides weights and cache, whatever its units are; the exact figure follows from the
 * segments.
 */
function perDeviceOverhead(
  { program, devices, dims, vocabSize, maxSeqLen }: PlanRequest,
  facts: ProgramFacts,
  units: readonly Unit[],
): number {
  const largest = (pick: (unit: Unit) => number): number => units.reduce((most, unit) => Math.max(most, pick(unit)), 0);
  let [inputs, crossing] = [0, 0];
  for (const [id, tensor] of program.tensors.entries()) {
    if (tensor.kind === 'input') inputs += facts.bytesOf(id);
  }
  const unitOf = new Map<number, number>();
  for (const [u, unit] of units.entries()) {
    for (const op of unit.ops) for (const id of program.ops[op]?.outputs ?? []) unitOf.set(id, u);
  }
  for (const [u, unit] of units.entries()) {
    const from = new Set<number>();
    for (const op of unit.ops) {
      for (const id of program.ops[op]?.inputs ?? []) {
        const storage = facts.storageOf(id);
        if ((unitOf.get(storage) ?? u) !== u) from.add(storage);
      }
    }
    crossing = Math.max(crossing, facts.sum(from));
  }
  const sampling =
    vocabSize === null ? { activations: 0, scratch: 0 } : samplingBytes(dims.sequences, maxSeqLen, vocabSize);
  const scratch = Math.max(
    largest((unit) => unit.scratchBytes),
    sampling.scratch,
  );
  const staging = Math.max(...devices.map(({ name }) => loadStagingBytes(name)));
  const inbox = devices.length > 1 ? STEPS_IN_FLIGHT * crossing : 0;
  return staging + wholeArenaBytes(facts) + inbox + inputs + sampling.activations + scratch;
}
