/**
 * Which blocks of the paged KV cache are free. A sequence's blocks need not be neighbours; what lies in them is the
 * executors' business.
 */
import { KV_BLOCK_SIZE, OutOfMemoryError, uniformGenerator } from '@metashard/core';

export class BlockAllocator {
  readonly #free: number[];

  constructor(readonly total: number) {
    this.#free = Array.from({ length: total }, (_, i) => total - 1 - i);
  }

  get freeBlocks(): number {
    return this.#free.length;
  }

  /** Blocks for `tokens` tokens. Throws OutOfMemoryError. */
  take(tokens: number): Int32Array {
    const count = Math.ceil(tokens / KV_BLOCK_SIZE);
    if (count > this.#free.length) {
      throw new OutOfMemoryError(
        `KV cache: expected ${count} free blocks of ${KV_BLOCK_SIZE} tokens, got ${this.#free.length} of ${this.total}`,
        {
          hint: 'raise max_batch_size or max_seq_len',
        },
      );
    }
    return Int32Array.from(this.#free.splice(this.#free.length - count).reverse());
  }

  give(blocks: Int32Array): void {
    for (const block of blocks.toReversed()) this.#free.push(block);
  }

  /** Puts the free blocks in another order; results must not depend on it. */
  shuffle(seed: number): void {
    const next = uniformGenerator(seed);
    for (let i = this.#free.length - 1; i > 0; i--) {
      const j = Math.floor(next() * (i + 1));
      [this.#free[i], this.#free[j]] = [this.#free[j] as number, this.#free[i] as number];
    }
  }
}
