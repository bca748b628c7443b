/**
 * Plans a recorded Program over devices: strategy or explicit map → segments and every device's bytes. Pure: needs no
 * device, no weights. What it returns is what the executors allocate. Where ops go is `place-ops.ts`; recording is
 * `plan-device-map.ts`.
 */
import { ConfigError, type DeviceName, type DimValues, type Program, parseDevice } from '@metashard/core';
import { type CostModel, DATASHEET_COSTS, type ExpectedUse, expectedUse, stageMs, workOf } from './costs.js';
import type { DeviceBudget } from './devices.js';
import { shortOfMemory } from './does-not-fit.js';
import { type DeviceMemory, loadStagingBytes, planDeviceMemory, samplingBytes } from './memory-plan.js';
import { blockOf } from './partition.js';
import { type PlacedOps, placeByStrategy, placeExplicitly } from './place-ops.js';
import type { Objective } from './placement.js';
import type { DeviceMap, DevicePlan, PlanDevice, Strategy } from './plan.js';
import { moduleBytes } from './plan-modules.js';
import { ProgramFacts } from './program-facts.js';
import { cutSegments, type Segment } from './segments.js';
import { parkedBytes } from './stream-plan.js';

export interface PlanRequest {
  program: Program;
  /** Paths of modules that are never cut. */
  blockPaths: ReadonlySet<string>;
  /** Every module path: what an explicit map may name. */
  modulePaths: ReadonlySet<string>;
  devices: readonly DeviceBudget[];
  deviceMap: Strategy | DeviceMap;
  maxSeqLen: number;
  maxBatchSize: number;
  /** Sizes of the largest step. */
  dims: DimValues;
  /** null: the program chooses no tokens. */
  vocabSize: number | null;
  model: string;
  skipped?: DevicePlan['skipped'];
  ignoredConfigFields?: string[];
  /** Default: datasheet figures. */
  costs?: CostModel;
  /** What `auto` minimizes: a request's time (default), or its slowest stage. */
  objective?: Objective | undefined;
  /** Default: 512 tokens in, 128 out, maxBatchSize sequences. */
  expectedUse?: Partial<ExpectedUse> | undefined;
}

export interface PlannedProgram {
  plan: DevicePlan;
  segments: Segment[];
  memory: Map<DeviceName, DeviceMemory>;
}

/** A cache of 8 bits is the CPU backend's alone. */
function refuseInt8Cache({ tensors }: Program, { device, ops }: Segment): void {
  if (parseDevice(device).type !== 'cuda') return;
  const refused = ops.some(({ inputs }) =>
    inputs.some((id) => tensors[id]?.kind === 'cache' && tensors[id].dtype === 'int8'),
  );
  if (!refused) return;
  throw new ConfigError(`kv_cache_dtype: expected float32, float16 or bfloat16 for attention on ${device}, got int8`, {
    hint: 'choose kv_cache_dtype: bfloat16, or map the blocks to cpu',
  });
}

/**
 * Throws DeviceMapError (a map that names no module or leaves parameters out), ConfigError, InsufficientMemoryError.
 */
export function planProgram(request: PlanRequest): PlannedProgram {
  const { program, dims } = request;
  const facts = ProgramFacts.of(program, dims);
  const { placed, segments, memory, devices, streamedOps } = layOutWithinBudgets(request, facts);
  const plan: DevicePlan = {
    version: 1,
    model: request.model,
    strategy: typeof request.deviceMap === 'object' ? 'explicit' : request.deviceMap,
    deviceMap: placed.deviceMap,
    objective: request.objective ?? 'latency',
    costs: (request.costs ?? DATASHEET_COSTS).source,
    maxSeqLen: request.maxSeqLen,
    maxBatchSize: request.maxBatchSize,
    segments: segments.flatMap((segment) => planSegments(facts, segment, streamedOps)),
    devices,
    modules: moduleBytes(facts, request.blockPaths, segments, streamedOps),
    skipped: request.skipped ?? [],
    offloaded: Object.entries(placed.deviceMap).flatMap(([module, value]) => {
      const device = typeof value === 'object' ? value.device : value;
      return device === 'disk' || typeof value === 'object' ? [{ module, device }] : [];
    }),
    copies: copiesOf(facts, memory),
    ignoredConfigFields: request.ignoredConfigFields ?? [],
  };
  return { plan, segments, memory };
}

interface LaidOut {
  placed: PlacedOps;
  segments: Segment[];
  memory: Map<DeviceName, DeviceMemory>;
  devices: PlanDevice[];
  /** Where the weights of streamed ops lie. */
  streamedOps: ReadonlyMap<number, DeviceName>;
}

const MOST_TRIES = 8;

/** A strategy counts activations before it knows the segments; what it missed, it leaves free the next time. */
function layOutWithinBudgets(request: PlanRequest, facts: ProgramFacts): LaidOut {
  if (typeof request.deviceMap === 'object') {
    const laid = layOut(request, facts, placeExplicitly(request, facts));
    checkBudgets(request.program, laid.devices);
    return laid;
  }
  for (let spareBytes = 0, tries = 1; ; tries++) {
    const laid = layOut(request, facts, placeByStrategy(request, facts, spareBytes));
    const missing = Math.max(0, ...laid.devices.map(({ freeBytes }) => -freeBytes));
    if (missing === 0 || tries === MOST_TRIES) {
      checkBudgets(request.program, laid.devices);
      return laid;
    }
    spareBytes += missing;
  }
}

/** Segments, and every device's bytes to the last. */
function layOut(request: PlanRequest, facts: ProgramFacts, placed: PlacedOps): LaidOut {
  const segments = cutSegments(facts, placed.deviceOfOp);
  for (const segment of segments) refuseInt8Cache(request.program, segment);
  const streams = { ops: placed.streamedOps, blockOf: (module: string) => blockOf(module, request.blockPaths) };
  const used = [...new Set(segments.map((segment) => segment.device))];
  const memory = new Map(used.map((device) => [device, planDeviceMemory(facts, segments, device, streams)]));
  const devices = request.devices
    .filter(({ name }) => name !== 'disk')
    .map((device) => describeDevice(request, facts, device, memory, segments));
  const disk = request.devices.find(({ name }) => name === 'disk');
  const streamedOps = opsThatStream(facts, segments, memory, placed.streamedOps);
  if (disk !== undefined && [...streamedOps.values()].includes('disk'))
    devices.push(describeDisk(disk, memory, request.costs ?? DATASHEET_COSTS));
  return { placed, segments, memory, devices, streamedOps };
}

function describeDevice(
  { program, dims, vocabSize, maxSeqLen, maxBatchSize, expectedUse: given, costs = DATASHEET_COSTS }: PlanRequest,
  facts: ProgramFacts,
  device: DeviceBudget,
  memories: ReadonlyMap<DeviceName, DeviceMemory>,
  segments: readonly Segment[],
): PlanDevice {
  const memory = memories.get(device.name);
  const hasHead = vocabSize !== null && segments.at(-1)?.device === device.name && program.outputs.logits !== undefined;
  const sampling = hasHead ? samplingBytes(dims.sequences, maxSeqLen, vocabSize) : { activations: 0, scratch: 0 };
  const weightsBytes = (memory?.weightsBytes ?? 0) + parkedBytes(device.name, memories.values());
  const kvCacheBytes = memory?.kvCacheBytes ?? 0;
  const activationsBytes = (memory?.activationsBytes ?? 0) + sampling.activations;
  const scratchBytes = Math.max(memory?.scratchBytes ?? 0, sampling.scratch);
  const windowBytes = memory === undefined ? 0 : memory.windowBytes + loadStagingBytes(device.name);
  const needed = weightsBytes + kvCacheBytes + activationsBytes + scratchBytes + windowBytes + device.reserveBytes;
  const ops = segments.filter((segment) => segment.device === device.name).flatMap((segment) => segment.ops);
  const use = expectedUse(given, maxBatchSize);
  const work = workOf(facts, ops, (kvCacheBytes * use.sequences) / maxBatchSize);
  return {
    name: device.name,
    emulated: device.emulated,
    budgetBytes: device.budgetBytes,
    weightsBytes,
    kvCacheBytes,
    activationsBytes,
    scratchBytes,
    windowBytes,
    reserveBytes: device.reserveBytes,
    freeBytes: device.budgetBytes - needed,
    expectedMs: stageMs(work, costs.of(device.name), use).decode,
  };
}

/** The disk: what is streamed from it, and how long a step waits for it where nothing of it is in memory. */
function describeDisk(
  disk: DeviceBudget,
  memory: ReadonlyMap<DeviceName, DeviceMemory>,
  { diskBandwidth }: CostModel,
): PlanDevice {
  const weightsBytes = parkedBytes(disk.name, memory.values());
  let windowBytes = 0;
  for (const one of memory.values())
    if (parseDevice(one.device).type === 'cuda' && one.portions.some(({ from }) => from === disk.name))
      windowBytes += one.windowBytes;
  return {
    name: disk.name,
    emulated: false,
    budgetBytes: disk.budgetBytes,
    weightsBytes,
    kvCacheBytes: 0,
    activationsBytes: 0,
    scratchBytes: 0,
    windowBytes,
    reserveBytes: 0,
    freeBytes: disk.budgetBytes - weightsBytes,
    expectedMs: (weightsBytes / diskBandwidth) * 1e3,
  };
}

/** A segment, taken apart where its weights lie elsewhere. */
function planSegments(
  facts: ProgramFacts,
  { device, ops, modules }: Segment,
  streamedOps: ReadonlyMap<number, DeviceName>,
): DevicePlan['segments'] {
  if (streamedOps.size === 0) return [{ device, executeOn: device, modules: [...modules] }];
  const parts: DevicePlan['segments'] = [];
  for (const op of ops) {
    const holder = streamedOps.get(facts.producer[op.outputs[0] as number] as number) ?? device;
    const last = parts.at(-1);
    if (last?.device !== holder) parts.push({ device: holder, executeOn: device, modules: [op.module] });
    else if (!last.modules.includes(op.module)) last.modules.push(op.module);
  }
  return parts;
}

/** Less the ops whose weights the device holds all the same. */
function opsThatStream(
  facts: ProgramFacts,
  segments: readonly Segment[],
  memory: ReadonlyMap<DeviceName, DeviceMemory>,
  streamedOps: ReadonlyMap<number, DeviceName>,
): ReadonlyMap<number, DeviceName> {
  const left = new Map(streamedOps);
  for (const { device, ops } of segments) {
    const weights = memory.get(device)?.weights;
    for (const op of streamedOps.size === 0 ? [] : ops)
      if (op.inputs.some((id) => weights?.has(facts.storageOf(id))))
        left.delete(facts.producer[op.outputs[0] as number] as number);
  }
  return left;
}

function checkBudgets(program: Program, devices: readonly PlanDevice[]): void {
  const worst = devices.reduce((a, b) => (b.freeBytes < a.freeBytes ? b : a));
  if (worst.freeBytes >= 0) return;
  const { name, budgetBytes } = worst;
  throw shortOfMemory(program, devices.length, { what: 'device map', name, budgetBytes, extraBytes: -worst.freeBytes });
}

/** Weights that lie on more than one device. */
function copiesOf(facts: ProgramFacts, memory: ReadonlyMap<DeviceName, DeviceMemory>): DevicePlan['copies'] {
  const seen = new Set<number>();
  const copies: DevicePlan['copies'] = [];
  for (const { device, weights } of memory.values()) {
    for (const id of weights) {
      if (seen.has(id))
        copies.push({ tensor: facts.program.tensors[id]?.name ?? '', device, bytes: facts.bytesOf(id) });
      seen.add(id);
    }
  }
  return copies;
}
