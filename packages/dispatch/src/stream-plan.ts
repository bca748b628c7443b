/**
 * Which weights of a device are streamed from disk or from host memory, and in which portions: the ops of one block
 * with the weights they use, in order of execution. A device that streams needs room for the portion at work and those
 * read ahead. One that reads host memory computes in place, and the rest of its room keeps portions that need not be
 * read again; into the window of any other the portions are copied, each to its own place.
 */
import { type DeviceName, type OpName, type Program, parseDevice, type TensorId } from '@metashard/core';
import type { ProgramFacts } from './program-facts.js';
import type { Segment } from './segments.js';

/** Portions read ahead of the one at work. */
export const READ_AHEAD = 2;

export interface StreamPortion {
  segment: number;
  /** Module whose ops these are. */
  block: string;
  /** Ops of the segment: first … end - 1. */
  first: number;
  end: number;
  /** Where its weights lie: `disk`, or a CPU. */
  from: DeviceName;
  /** All weights of the portion that lie there. */
  weights: TensorId[];
  /** Those that are read whole; of a table of embeddings only the rows that are asked for are touched. */
  read: TensorId[];
  /** Bytes of `read`. */
  bytes: number;
  /**
   * Byte offset in the window of a device that they are copied to, one after the other; 0 where they are used in place.
   */
  windowOffset: number;
}

export interface StreamRequest {
  /** Ops whose weights lie elsewhere, and where. */
  ops: ReadonlyMap<number, DeviceName>;
  /** Portions are cut where the module changes that this gives. */
  blockOf: (module: string) => string;
}

export interface PlannedStreams {
  portions: StreamPortion[];
  /** Streamed weights; all others of the device are held. */
  streamed: ReadonlyMap<TensorId, DeviceName>;
  /** Room for the portion at work and those read ahead. */
  windowBytes: number;
}

/**
 * Streams of one device, whose segments are given. Held all the same: a weight that an op uses which is not streamed;
 * and where portions are copied, a table of which a step needs a few rows only, and a weight of several blocks.
 */
export function planStreams(
  facts: ProgramFacts,
  device: DeviceName,
  segments: readonly Segment[],
  { ops, blockOf }: StreamRequest,
): PlannedStreams {
  const streamed = streamedWeights(facts, segments, ops);
  if (streamed.size === 0) return { portions: [], streamed, windowBytes: 0 };
  if (parseDevice(device).type === 'cpu') {
    const portions = cutPortions(facts, segments, streamed, blockOf);
    return { portions, streamed, windowBytes: mostInFlight(portions) };
  }
  for (const op of segments.flatMap((segment) => segment.ops))
    if (isTableLookup(op.op)) for (const id of op.inputs) streamed.delete(facts.storageOf(id));
  const seen = new Set<TensorId>();
  for (const { weights } of cutPortions(facts, segments, streamed, blockOf))
    for (const id of weights)
      if (seen.has(id)) streamed.delete(id);
      else seen.add(id);
  const portions = cutPortions(facts, segments, streamed, blockOf);
  return { portions, streamed, windowBytes: placeInWindow(portions) };
}

/** Weights that only streamed ops of a device use, and where they lie; one that another op uses too is held. */
function streamedWeights(
  facts: ProgramFacts,
  segments: readonly Segment[],
  ops: ReadonlyMap<number, DeviceName>,
): Map<TensorId, DeviceName> {
  const streamed = new Map<TensorId, DeviceName>();
  const held = new Set<TensorId>();
  if (ops.size === 0) return streamed;
  for (const op of segments.flatMap((segment) => segment.ops)) {
    const from = ops.get(facts.producer[op.outputs[0] as number] as number);
    for (const id of op.inputs) {
      const storage = facts.storageOf(id);
      if (storage < 0 || facts.program.tensors[storage]?.kind !== 'weight') continue;
      if (from === undefined) held.add(storage);
      else if (!streamed.has(storage)) streamed.set(storage, from);
    }
  }
  for (const id of held) streamed.delete(id);
  return streamed;
}

function cutPortions(
  facts: ProgramFacts,
  segments: readonly Segment[],
  streamed: ReadonlyMap<TensorId, DeviceName>,
  blockOf: (module: string) => string,
): StreamPortion[] {
  const portions: StreamPortion[] = [];
  for (const { index: segment, ops } of segments) {
    let last: StreamPortion | undefined;
    for (const [index, op] of ops.entries()) {
      const weights = op.inputs.map((id) => facts.storageOf(id)).filter((id) => streamed.has(id));
      const from = streamed.get(weights[0] ?? -1) ?? last?.from;
      const block = blockOf(op.module);
      if (last === undefined || last.block !== block || last.from !== from) {
        if (from === undefined || weights.length === 0) continue;
        last = { segment, block, first: index, end: index + 1, from, weights: [], read: [], bytes: 0, windowOffset: 0 };
        portions.push(last);
      }
      last.end = index + 1;
      for (const id of weights) addWeight(facts, last, id, op);
    }
  }
  return portions;
}

function addWeight(facts: ProgramFacts, portion: StreamPortion, id: TensorId, op: Program['ops'][number]): void {
  if (!portion.weights.includes(id)) portion.weights.push(id);
  if (isTableLookup(op.op) || portion.read.includes(id)) return;
  portion.read.push(id);
  portion.bytes += facts.bytesOf(id);
}

/** Whether an op touches only some rows of its weight. */
export function isTableLookup(op: OpName): boolean {
  return op === 'embedding' || op === 'int8_embedding';
}

/** Bytes of the portion at work and those read ahead, wherever in the round a step is. */
function mostInFlight(portions: readonly StreamPortion[]): number {
  let most = 0;
  for (const first of portions.keys()) {
    let bytes = 0;
    for (let ahead = 0; ahead <= Math.min(READ_AHEAD, portions.length - 1); ahead++) {
      bytes += portions[(first + ahead) % portions.length]?.bytes ?? 0;
    }
    most = Math.max(most, bytes);
  }
  return most;
}

/**
 * Gives every portion the lowest place in the window that no portion at most READ_AHEAD before it has; returns the
 * window's bytes.
 */
function placeInWindow(portions: readonly StreamPortion[]): number {
  let most = 0;
  for (const [index, portion] of portions.entries()) {
    let at = 0;
    const before = portions.slice(Math.max(0, index - READ_AHEAD), index);
    for (const other of before.sort((a, b) => a.windowOffset - b.windowOffset)) {
      if (other.windowOffset - at >= portion.bytes) break;
      at = Math.max(at, other.windowOffset + other.bytes);
    }
    portion.windowOffset = at;
    most = Math.max(most, at + portion.bytes);
  }
  return most;
}

/** Bytes that other devices' portions hold in the memory of this one. */
export function parkedBytes(device: DeviceName, streams: Iterable<{ portions: readonly StreamPortion[] }>): number {
  let total = 0;
  for (const { portions } of streams) for (const { from, bytes } of portions) if (from === device) total += bytes;
  return total;
}
