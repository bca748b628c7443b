/**
 * Single-producer single-consumer rings of int32 slots in shared memory, and the words through which threads wake and
 * stop each other.
 * About 2 µs from push to pop between two threads. Nothing here knows what a slot means (see `step.ts`).
 */
import { ExecutorError } from '@metashard/core';

/** A wait is never longer; then the stop word is looked at again. */
const LONGEST_WAIT_MS = 100;

const WRITTEN = 0;
const READ = 1;
const HEADER_WORDS = 2;

export class Ring {
  readonly #words: Int32Array;
  readonly #slots: number;

  constructor(
    readonly shared: SharedArrayBuffer,
    readonly slotWords: number,
  ) {
    this.#words = new Int32Array(shared);
    this.#slots = Math.floor((this.#words.length - HEADER_WORDS) / slotWords);
  }

  static allocate(slotWords: number, slots: number): Ring {
    return new Ring(new SharedArrayBuffer((HEADER_WORDS + slotWords * slots) * 4), slotWords);
  }

  /**
   * Lets `fill` write the next slot and publishes it. Throws ExecutorError on a full ring: the protocol bounds what is
   * under way.
   */
  push(fill: (slot: Int32Array) => void): void {
    const written = Atomics.load(this.#words, WRITTEN);
    if (written - Atomics.load(this.#words, READ) >= this.#slots)
      throw new ExecutorError('ring: expected a free slot, got a full ring');
    fill(this.#slot(written));
    Atomics.store(this.#words, WRITTEN, written + 1);
  }

  /** The oldest slot, or null. It stays valid until `release`. */
  peek(): Int32Array | null {
    const read = Atomics.load(this.#words, READ);
    return read === Atomics.load(this.#words, WRITTEN) ? null : this.#slot(read);
  }

  release(): void {
    Atomics.add(this.#words, READ, 1);
  }

  /** Empties the ring; only while neither side uses it. */
  reset(): void {
    Atomics.store(this.#words, WRITTEN, 0);
    Atomics.store(this.#words, READ, 0);
  }

  #slot(position: number): Int32Array {
    const start = HEADER_WORDS + (position % this.#slots) * this.slotWords;
    return this.#words.subarray(start, start + this.slotWords);
  }
}

const STOP = 0;
const ABORT = 1;
const ROWS = 2;

/**
 * Words that all threads of a model see: stop (a worker failed), abort (the caller gave up), one word per row (stop
 * this row), one bell per worker.
 */
export class Control {
  readonly #words: Int32Array;

  constructor(
    readonly shared: SharedArrayBuffer,
    readonly rows: number,
  ) {
    this.#words = new Int32Array(shared);
  }

  static allocate(rows: number, workers: number): Control {
    return new Control(new SharedArrayBuffer((ROWS + rows + workers) * 4), rows);
  }

  get #bells(): number {
    return ROWS + this.rows;
  }
  get stopped(): boolean {
    return Atomics.load(this.#words, STOP) !== 0;
  }
  get aborted(): boolean {
    return Atomics.load(this.#words, ABORT) !== 0;
  }
  rowStopped(row: number): boolean {
    return Atomics.load(this.#words, ROWS + row) !== 0;
  }
  stopRow(row: number): void {
    Atomics.store(this.#words, ROWS + row, 1);
  }

  /** A thread failed: every wait ends and every loop leaves. */
  stop(): void {
    Atomics.store(this.#words, STOP, 1);
    this.ringAll();
  }
  abort(): void {
    Atomics.store(this.#words, ABORT, 1);
    this.ringAll();
  }
  /** Before a new run, while no worker is in its loop. */
  reset(): void {
    this.#words.fill(0, 0, this.#bells);
  }

  bell(worker: number): number {
    return Atomics.load(this.#words, this.#bells + worker);
  }
  ring(worker: number): void {
    Atomics.add(this.#words, this.#bells + worker, 1);
    Atomics.notify(this.#words, this.#bells + worker);
  }
  ringAll(): void {
    for (let index = this.#bells; index < this.#words.length; index++) {
      Atomics.add(this.#words, index, 1);
      Atomics.notify(this.#words, index);
    }
  }
  /** Sleeps until the worker's bell leaves `seen`, or a bounded time. Not for the main thread. */
  wait(worker: number, seen: number): void {
    Atomics.wait(this.#words, this.#bells + worker, seen, LONGEST_WAIT_MS);
  }
}
