/**
 * Where every byte of a device goes: weights, KV cache, the activation arena (offsets by liveness at the largest step),
 * scratch, inboxes for tensors that arrive from other devices, and step inputs. The executor allocates exactly this, so
 * the plan and the run cannot drift apart.
 */
import {
  type DeviceName,
  DTYPES,
  opSignature,
  type ProgramOp,
  parseDevice,
  roundUp,
  sameDims,
  type TensorId,
} from '@metashard/core';
import { ALIGNMENT, type ProgramFacts, UNUSED } from './program-facts.js';
import type { Segment } from './segments.js';
import { planStreams, type StreamPortion, type StreamRequest } from './stream-plan.js';

/** Steps that may be under way at once between the first and the last segment: how many slots an inbox has. */
export const STEPS_IN_FLIGHT = 2;

export interface Arena {
  bytes: number;
  /** Byte offset of each storage tensor. */
  offsets: Map<TensorId, number>;
}

/**
 * Gives every activation of the ops an offset so that tensors alive at once never overlap: best fit over a list of
 * gaps, in order of execution. The output of an op that may work in place takes the place of an input that ends there.
 */
export function planArena(facts: ProgramFacts, ops: readonly ProgramOp[], keep: ReadonlySet<TensorId>): Arena {
  const { lastUse } = facts; // all UNUSED between calls
  for (let index = 0; index < ops.length; index++) {
    const { inputs, outputs } = ops[index] as ProgramOp;
    for (const id of outputs) lastUse[id] = keep.has(id) ? ops.length : index;
    for (const id of inputs) {
      const storage = facts.storageOf(id);
      const last = storage < 0 ? UNUSED : (lastUse[storage] as number);
      if (last !== UNUSED && last < ops.length) lastUse[storage] = index;
    }
  }
  const space = new GapList();
  const offsets = new Map<TensorId, number>();
  const giveIfDone = (id: TensorId, index: number): void => {
    if (id < 0 || lastUse[id] !== index) return;
    space.give(offsets.get(id) as number, facts.bytesOf(id));
    lastUse[id] = UNUSED;
  };
  for (let index = 0; index < ops.length; index++) {
    const { inputs, outputs } = ops[index] as ProgramOp;
    const from = inputEndingIn(facts, ops[index] as ProgramOp, index);
    if (from >= 0) {
      offsets.set(outputs[0] as number, offsets.get(from) as number);
      lastUse[from] = UNUSED;
    } else {
      for (const id of outputs) offsets.set(id, space.take(facts.bytesOf(id)));
    }
    for (const id of inputs) giveIfDone(facts.storageOf(id), index);
    for (const id of outputs) giveIfDone(id, index);
  }
  for (const id of keep) lastUse[id] = UNUSED;
  return { bytes: space.high, offsets };
}

/**
 * The input in whose place an op's only output may lie: an activation that is used for the last time, not through a
 * view; -1: there is none.
 */
function inputEndingIn({ lastUse, program: { tensors } }: ProgramFacts, op: ProgramOp, index: number): TensorId {
  if (opSignature(op.op).inPlace !== true) return -1;
  const output = tensors[op.outputs[0] as number];
  const found = op.inputs.find((id) => {
    const input = tensors[id];
    if (input?.kind !== 'activation' || output === undefined || lastUse[id] !== index) return false;
    return input.dtype === output.dtype && sameDims(input.dims, output.dims);
  });
  return found ?? -1;
}

/** Free gaps below a high-water mark. */
class GapList {
  high = 0;
  #gaps: { offset: number; bytes: number }[] = [];

  take(bytes: number): number {
    let best = -1;
    for (let i = 0, smallest = Number.POSITIVE_INFINITY; i < this.#gaps.length; i++) {
      const free = (this.#gaps[i] as { bytes: number }).bytes;
      if (free >= bytes && free < smallest) [best, smallest] = [i, free];
    }
    const gap = this.#gaps[best];
    if (gap !== undefined) {
      const { offset } = gap;
      gap.offset += bytes;
      gap.bytes -= bytes;
      if (gap.bytes === 0) this.#gaps.splice(best, 1);
      return offset;
    }
    // No gap fits: grow, from the last gap's start where it touches the end.
    const last = this.#gaps.at(-1);
    const offset = last !== undefined && last.offset + last.bytes === this.high ? last.offset : this.high;
    if (offset !== this.high) this.#gaps.pop();
    this.high = offset + bytes;
    return offset;
  }

  give(offset: number, bytes: number): void {
    let at = this.#gaps.findIndex((gap) => gap.offset > offset);
    if (at < 0) at = this.#gaps.length;
    this.#gaps.splice(at, 0, { offset, bytes });
    const [previous, here, next] = [this.#gaps[at - 1], this.#gaps[at], this.#gaps[at + 1]];
    if (here !== undefined && next !== undefined && here.offset + here.bytes === next.offset) {
      here.bytes += next.bytes;
      this.#gaps.splice(at + 1, 1);
    }
    if (previous !== undefined && here !== undefined && previous.offset + previous.bytes === here.offset) {
      previous.bytes += here.bytes;
      this.#gaps.splice(at, 1);
    }
  }
}

export interface DeviceMemory {
  device: DeviceName;
  weights: Set<TensorId>;
  caches: Set<TensorId>;
  constants: Set<TensorId>;
  inputs: Set<TensorId>;
  /** Weights that are not held here but streamed while ops run, in portions. */
  portions: StreamPortion[];
  /** Room for the portion at work and those read ahead. */
  windowBytes: number;
  /** Per segment of this device, by segment index. */
  arenas: Map<number, Arena>;
  weightsBytes: number;
  kvCacheBytes: number;
  /** One arena for all segments of the device (it runs one at a time), inboxes, step inputs and sampling. */
  activationsBytes: number;
  arenaBytes: number;
  scratchBytes: number;
}

/** What loading brings into memory for a device: weights that it holds, and those that are parked for it. */
export function weightsToLoad({ weights, portions }: DeviceMemory): Set<TensorId> {
  return new Set([...weights, ...portions.flatMap(({ from, read }) => (from === 'disk' ? [] : read))]);
}

/** Sums up one device. `segments` are all segments; `sampling` adds the buffers of a device that chooses tokens. */
export function planDeviceMemory(
  facts: ProgramFacts,
  segments: readonly Segment[],
  device: DeviceName,
  streams: StreamRequest = NO_STREAMS,
): DeviceMemory {
  const { program } = facts;
  const own = segments.filter((segment) => segment.device === device);
  const sets = {
    weight: new Set<TensorId>(),
    cache: new Set<TensorId>(),
    constant: new Set<TensorId>(),
    input: new Set<TensorId>(),
  };
  const arenas = new Map<number, Arena>();
  const { portions, streamed, windowBytes } = planStreams(facts, device, own, streams);
  let [inbox, scratch, arena] = [0, 0, 0];
  for (const segment of own) {
    for (const op of segment.ops) {
      scratch = Math.max(scratch, facts.scratch[facts.producer[op.outputs[0] as number] as number] as number);
      for (const id of op.inputs) {
        if (id < 0) continue;
        const storage = facts.storageOf(id);
        const kind = program.tensors[storage]?.kind;
        if (kind === 'weight' || kind === 'cache' || kind === 'constant' || kind === 'input') {
          if (!streamed.has(storage)) sets[kind].add(storage);
        }
      }
    }
    const keep = new Set(segment.sends.map((send) => send.tensor));
    for (const output of segment.outputs) if (isFinalOutput(output.name)) keep.add(facts.storageOf(output.tensor));
    for (const id of readByEachPass(facts, segment)) keep.add(id);
    const made = planArena(facts, segment.ops, keep);
    arenas.set(segment.index, made);
    arena = Math.max(arena, made.bytes);
    for (const id of segment.receives) inbox += STEPS_IN_FLIGHT * facts.bytesOf(id);
  }
  return {
    device,
    portions,
    windowBytes,
    weights: sets.weight,
    caches: sets.cache,
    constants: sets.constant,
    inputs: sets.input,
    arenas,
    weightsBytes: facts.sum(sets.weight) + facts.sum(sets.constant),
    kvCacheBytes: facts.sum(sets.cache),
    activationsBytes: arena + inbox + facts.sum(sets.input),
    arenaBytes: arena,
    scratchBytes: scratch,
  };
}

/**
 * What the ops that make rows of logits read from ops before them: a long prompt's logits are made in passes
 * (`serve.ts`), so it must outlive the first.
 */
function readByEachPass(facts: ProgramFacts, segment: Segment): TensorId[] {
  const { program, dims } = facts;
  if (segment.sends.length > 0 || dims.outputs >= dims.tokens) return [];
  const first = segment.ops.findIndex((op) => op.outputs.some((id) => program.tensors[id]?.dims[0] === 'outputs'));
  if (first < 0) return [];
  const made = new Set(segment.ops.slice(0, first).flatMap((op) => op.outputs));
  const read = segment.ops.slice(first).flatMap((op) => op.inputs.map((id) => facts.storageOf(id)));
  return read.filter((id) => made.has(id));
}

const NO_STREAMS: StreamRequest = { ops: new Map(), blockOf: (module) => module };

/**
 * Outputs read after the whole segment has run; taps (`hidden_states.N`) are read as soon as they are made and need not
 * outlive it.
 */
export function isFinalOutput(name: string): boolean {
  return !name.startsWith('hidden_states.');
}

/** Bytes of the buffers that choosing tokens takes: see `sampler.ts`. */
export function samplingBytes(
  sequences: number,
  maxSeqLen: number,
  vocabSize: number,
): { activations: number; scratch: number } {
  const words = sequences * (4 + 1 + maxSeqLen + 1 + 1);
  return {
    activations: roundUp(words * DTYPES.int32.bytes, ALIGNMENT) + 5 * ALIGNMENT,
    scratch: roundUp(vocabSize * 12, ALIGNMENT),
  };
}

/**
 * Device memory that weights pass through while they are loaded: windows of rows, kept with the context. The CPU reads
 * files in place.
 */
export function loadStagingBytes(device: DeviceName): number {
  return parseDevice(device).type === 'cuda' ? 8 * 2 ** 20 : 0;
}
