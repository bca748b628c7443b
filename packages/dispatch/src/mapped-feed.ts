/**
 * Portions of a packed store that a device computes on in place, on the mapping: read ahead by the addon's reader
 * thread, and released behind, except those that the device has room to keep.
 */
import { ADVICE, native } from '@metashard/core';
import type { WeightPlace } from './load-weights.js';
import type { StreamPortion } from './stream-plan.js';
import type { PortionFeed } from './weight-stream.js';

export interface WeightRange extends WeightPlace {
  bytes: number;
}

export class MappedFeed implements PortionFeed {
  readonly #portions: { ranges: WeightRange[]; kept: boolean; present: boolean }[];

  /** `keepBytes`: room beyond the window. */
  constructor(portions: readonly StreamPortion[], placeOf: (weight: number) => WeightRange, keepBytes: number) {
    let room = keepBytes;
    this.#portions = portions.map(({ read, bytes }) => {
      const kept = bytes <= room;
      if (kept) room -= bytes;
      return { ranges: joinRanges(read.map(placeOf)), kept, present: false };
    });
  }

  ask(index: number): void {
    this.#advise(index, ADVICE.willNeed);
  }

  /** Ops that touch pages not there yet would have them read out of order, by every thread at its own place. */
  wait(index: number): void {
    this.#advise(index, ADVICE.wait);
  }

  release(index: number): void {
    const portion = this.#portions[index];
    if (portion?.kept === true) portion.present = true;
    else this.#advise(index, ADVICE.release);
  }

  overlap(): boolean {
    return false;
  }

  reset(): void {
    for (const portion of this.#portions) portion.present = false;
  }

  #advise(index: number, advice: number): void {
    const portion = this.#portions[index];
    if (portion === undefined || portion.present) return;
    for (const { buffer, byteOffset, bytes } of portion.ranges) native().advise(buffer, byteOffset, bytes, advice);
  }
}

/** Neighbouring ranges of one buffer as one. */
function joinRanges(ranges: readonly WeightRange[]): WeightRange[] {
  const joined: WeightRange[] = [];
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
