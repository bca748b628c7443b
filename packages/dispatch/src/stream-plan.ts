/**
 * Which weights of a device are streamed from disk, and in which portions: the ops of one block with the weights they use, in order of execution. A device that
 * streams needs room for the portion at work and those read ahead; the rest of its room keeps portions that need not be read again.
 */
import type { OpName, Program, TensorId } from '@metashard/core';
import type { ProgramFacts } from './program-facts.js';
import type { Segment } from './segments.js';

/** Portions read ahead of the one at work. */
export const READ_AHEAD = 2;

export interface StreamPortion {
  segment: number;
  /** Ops of the segment: first … end - 1. */
  first: number;
  end: number;
  /** All weights of the portion that lie on disk. */
  weights: TensorId[];
  /** Those that are read whole; of a table of embeddings only the rows that are asked for are touched. */
  read: TensorId[];
  /** Bytes of `read`. */
  bytes: number;
}

/** Portions of a device's segments, given the weights that are to be streamed; cut where the module changes that `blockOf` gives. */
export function planStreams(
  facts: ProgramFacts,
  segments: readonly Segment[],
  streamed: ReadonlySet<TensorId>,
  blockOf: (module: string) => string,
): StreamPortion[] {
  const portions: StreamPortion[] = [];
  for (const segment of segments) {
    let last: { portion: StreamPortion; block: string } | undefined;
    for (const [index, op] of segment.ops.entries()) {
      const weights = streamedWeights(facts, op, streamed);
      const block = blockOf(op.module);
      if (last === undefined || last.block !== block) {
        if (weights.length === 0) continue;
        last = {
          block,
          portion: { segment: segment.index, first: index, end: index + 1, weights: [], read: [], bytes: 0 },
        };
        portions.push(last.portion);
      }
      last.portion.end = index + 1;
      for (const id of weights) {
        if (!last.portion.weights.includes(id)) last.portion.weights.push(id);
        if (isTableLookup(op.op) || last.portion.read.includes(id)) continue;
        last.portion.read.push(id);
        last.portion.bytes += facts.bytesOf(id);
      }
    }
  }
  return portions;
}

function streamedWeights(facts: ProgramFacts, op: Program['ops'][number], streamed: ReadonlySet<TensorId>): TensorId[] {
  return op.inputs.map((id) => facts.storageOf(id)).filter((id) => streamed.has(id));
}

/** Whether an op touches only some rows of its weight. */
export function isTableLookup(op: OpName): boolean {
  return op === 'embedding' || op === 'int8_embedding';
}

/** Room for the portion at work and those read ahead, wherever in the round a step is. */
export function windowBytes(portions: readonly StreamPortion[]): number {
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
