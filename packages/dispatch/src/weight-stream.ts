/**
 * Streams weights while ops run: the portion at work, and those after it ahead of use, in a round over all steps. Says which portion is wanted when; how one is
 * brought is a feed's: `mapped-feed.ts` where the device computes on a file in place, `device-feed.ts` where portions are copied to it.
 */
import { CheckpointError } from '@metashard/core';
import { READ_AHEAD, type StreamPortion } from './stream-plan.js';

/** Brings portions, named by their index. */
export interface PortionFeed {
  /** Has a portion brought; returns at once. */
  ask(portion: number): void;
  /** Returns when later ops may use it. Throws what bringing it threw. */
  wait(portion: number): void;
  /** The ops enqueued so far were the last to use it in this round. */
  release(portion: number): void;
  /** Whether one can only be brought where the other lies. */
  overlap(a: number, b: number): boolean;
  /** After a failure: nothing is under way, nothing was asked for. */
  reset(): void;
}

export class WeightStream {
  readonly #portions: readonly StreamPortion[];
  readonly #feed: PortionFeed;
  /** Portions asked for and not yet released. */
  readonly #asked = new Set<number>();

  constructor(portions: readonly StreamPortion[], feed: PortionFeed) {
    this.#portions = portions;
    this.#feed = feed;
  }

  /** Runs ops first … end - 1 of a segment through `run`, in pieces around the portions. After a throw the next call begins anew. */
  around(segment: number, first: number, end: number, run: (first: number, end: number) => void): void {
    try {
      this.#around(segment, first, end, run);
    } catch (error) {
      this.#asked.clear();
      this.#feed.reset();
      throw error;
    }
  }

  #around(segment: number, first: number, end: number, run: (first: number, end: number) => void): void {
    let at = first;
    for (const [index, portion] of this.#portions.entries()) {
      if (portion.segment !== segment || portion.end <= at || portion.first >= end) continue;
      if (portion.first > at) run(at, portion.first);
      this.#require(index);
      this.#askAfter(index);
      const until = Math.min(end, portion.end);
      namingBlock(portion, () => {
        this.#feed.wait(index);
        run(Math.max(at, portion.first), until);
      });
      at = until;
      if (at < portion.end) continue;
      this.#feed.release(index);
      this.#asked.delete(index);
      this.#askAfter(index);
    }
    if (at < end) run(at, end);
  }

  /** Asks for the portion that is to be computed on now, in the place of others that were only read ahead. */
  #require(index: number): void {
    if (this.#asked.has(index)) return;
    for (const other of this.#asked) if (this.#feed.overlap(index, other)) this.#asked.delete(other);
    this.#asked.add(index);
    this.#feed.ask(index);
  }

  /** Reads ahead as far as the window has room. */
  #askAfter(index: number): void {
    for (let ahead = 1; ahead <= READ_AHEAD; ahead++) {
      const next = (index + ahead) % this.#portions.length;
      if (this.#asked.has(next)) continue;
      for (const other of this.#asked) if (this.#feed.overlap(next, other)) return;
      this.#asked.add(next);
      this.#feed.ask(next);
    }
  }
}

/** A file that cannot be read is named by the addon; whose weights it holds is known here. */
function namingBlock({ block }: StreamPortion, use: () => void): void {
  try {
    use();
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error;
    throw new CheckpointError(`${block}: ${error.message}`, {
      code: error.code,
      hint: 'the disk or the file failed while the block was streamed; once it can be read again, so can the model',
      details: { ...error.details, block },
      cause: error,
    });
  }
}
