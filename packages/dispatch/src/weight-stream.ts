/**
 * Streams weights from a packed store while ops run: portions are read ahead by the addon's reader thread, computed on in place, and released behind, except
 * those that the device has room to keep. After the last portion the first is read ahead for the next step.
 */
import { ADVICE, native } from '@metashard/core';
import type { WeightPlace } from './load-weights.js';
import { READ_AHEAD, type StreamPortion } from './stream-plan.js';

interface Range extends WeightPlace {
  bytes: number;
}

interface Portion {
  segment: number;
  first: number;
  end: number;
  ranges: Range[];
  kept: boolean;
  /** A kept portion that has been read once stays. */
  present: boolean;
}

export class WeightStream {
  readonly #portions: Portion[];
  /** Portions asked for and not yet released. */
  readonly #asked = new Set<Portion>();

  /** `keepBytes`: room beyond the window. */
  constructor(portions: readonly StreamPortion[], placeOf: (weight: number) => Range, keepBytes: number) {
    let room = keepBytes;
    this.#portions = portions.map(({ segment, first, end, read, bytes }) => {
      const kept = bytes <= room;
      if (kept) room -= bytes;
      return { segment, first, end, ranges: joinRanges(read.map(placeOf)), kept, present: false };
    });
  }

  /** Runs ops first … end - 1 of a segment through `run`, in pieces around the portions. */
  around(segment: number, first: number, end: number, run: (first: number, end: number) => void): void {
    let at = first;
    for (const [index, portion] of this.#portions.entries()) {
      if (portion.segment !== segment || portion.end <= at || portion.first >= end) continue;
      if (portion.first > at) run(at, portion.first);
      for (let ahead = 0; ahead <= READ_AHEAD; ahead++)
        this.#ask(this.#portions[(index + ahead) % this.#portions.length] as Portion);
      const until = Math.min(end, portion.end);
      run(Math.max(at, portion.first), until);
      at = until;
      if (at >= portion.end) this.#release(portion);
    }
    if (at < end) run(at, end);
  }

  #ask(portion: Portion): void {
    if (portion.present || this.#asked.has(portion)) return;
    this.#asked.add(portion);
    for (const { buffer, byteOffset, bytes } of portion.ranges)
      native().advise(buffer, byteOffset, bytes, ADVICE.willNeed);
  }

  #release(portion: Portion): void {
    this.#asked.delete(portion);
    if (portion.kept) {
      portion.present = true;
      return;
    }
    for (const { buffer, byteOffset, bytes } of portion.ranges)
      native().advise(buffer, byteOffset, bytes, ADVICE.release);
  }
}

/** Neighbouring ranges of one buffer as one. */
function joinRanges(ranges: readonly Range[]): Range[] {
  const joined: Range[] = [];
  for (const range of [...ranges].sort((a, b) => a.buffer - b.buffer || a.byteOffset - b.byteOffset)) {
    const last = joined.at(-1);
    if (last !== undefined && last.buffer === range.buffer && range.byteOffset <= last.byteOffset + last.bytes + 4096) {
      last.bytes = range.byteOffset + range.bytes - last.byteOffset;
    } else {
      joined.push({ ...range });
    }
  }
  return joined;
}
