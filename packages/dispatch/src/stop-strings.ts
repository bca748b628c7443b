/**
 * Stop strings over streamed text: text goes in by pieces, text that is certainly before any stop string comes out;
 * what could be the beginning of one is held back. Where pieces are cut never changes the result: the stop string that
 * ends first wins, of two that end together the longer one.
 */
import { ArgumentError } from '@metashard/core';

export interface StopResult {
  /** Text to show now. */
  text: string;
  /** The stop string that was met; nothing after it will come. */
  hit: string | null;
}

export class StopStrings {
  readonly #stops: readonly string[];
  #held = '';
  #hit: string | null = null;

  /** Throws ArgumentError for an empty stop string. */
  constructor(stop: string | readonly string[] = []) {
    this.#stops = typeof stop === 'string' ? [stop] : stop;
    if (this.#stops.includes('')) throw new ArgumentError('stop: expected texts that are not empty, got ""');
  }

  /** Takes a piece of text. After a hit everything is swallowed. */
  push(piece: string): StopResult {
    if (this.#hit !== null) return { text: '', hit: this.#hit };
    if (this.#stops.length === 0) return { text: piece, hit: null };
    const text = this.#held + piece;
    const match = this.#firstMatch(text);
    if (match !== null) {
      this.#held = '';
      this.#hit = match.stop;
      return { text: text.slice(0, match.start), hit: match.stop };
    }
    const shown = text.length - this.#heldLength(text);
    this.#held = text.slice(shown);
    return { text: text.slice(0, shown), hit: null };
  }

  /** The text still held back, when nothing more comes. */
  flush(): string {
    const rest = this.#held;
    this.#held = '';
    return rest;
  }

  #firstMatch(text: string): { start: number; stop: string } | null {
    let best: { start: number; end: number; stop: string } | null = null;
    for (const stop of this.#stops) {
      const start = text.indexOf(stop);
      const end = start + stop.length;
      if (start >= 0 && (best === null || end < best.end || (end === best.end && start < best.start))) {
        best = { start, end, stop };
      }
    }
    return best;
  }

  /** Length of the longest end of `text` that begins a stop string. */
  #heldLength(text: string): number {
    let longest = 0;
    for (const stop of this.#stops) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
        if (text.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
