/**
 * Streaming detokenisation: token ids in, pieces of text out, so that all pieces together are exactly
 * `tokenizer.decode` of all ids. Decoders look at neighbours (bytes of one character spread over tokens, a leading
 * space that is stripped, WordPiece's joining), so every step decodes a window of the last tokens, whose text up to the
 * last step is known, and the piece is what came to it. No stop strings here.
 */
import type { ModelTokenizer } from './tokenizer.js';

/**
 * A UTF-8 character has at most 4 bytes, so at most 3 tokens are incomplete; the rest is context for decoders that look
 * at their neighbours.
 */
const KEPT_TOKENS = 8;
const REPLACEMENT = '\uFFFD';
/** What clean-up (` .` → `.`, ` n't` → `n't`) may still change: a space and what can follow it in a pattern. */
const UNSETTLED = / [ 'n]*[vr]?$/;

export class StreamDecoder {
  readonly #tokenizer: ModelTokenizer;
  readonly #skipSpecialTokens: boolean;
  #window: number[] = [];
  /** The part of the window's text that was given out. */
  #known = '';
  #trimAt = 2 * KEPT_TOKENS;
  /** Text that waits for the clean-up of spaces to be settled. */
  #unsettled = '';

  constructor(tokenizer: ModelTokenizer, { skipSpecialTokens = true }: { skipSpecialTokens?: boolean } = {}) {
    this.#tokenizer = tokenizer;
    this.#skipSpecialTokens = skipSpecialTokens;
  }

  /** Takes the next ids and gives the text that is certain now; '' while a character is incomplete. */
  push(ids: number | readonly number[]): string {
    let text = '';
    for (const id of typeof ids === 'number' ? [ids] : ids) text += this.#pushOne(id);
    return this.#settle(text);
  }

  /** The text still held back, when nothing more comes; the decoder starts anew. */
  flush(): string {
    const rest = this.#tokenizer.decodeUncleaned(this.#window).slice(this.#known.length);
    const text = this.#tokenizer.cleanUp(this.#unsettled + rest);
    this.#window = [];
    this.#known = '';
    this.#trimAt = 2 * KEPT_TOKENS;
    this.#unsettled = '';
    return text;
  }

  #pushOne(id: number): string {
    if (!this.#tokenizer.isDecoded(id, this.#skipSpecialTokens)) return '';
    this.#window.push(id);
    const text = this.#tokenizer.decodeUncleaned(this.#window);
    // One replacement character at the end may be a character whose bytes are still coming.
    const certain = text.endsWith(REPLACEMENT) ? text.slice(0, -1) : text;
    if (!certain.startsWith(this.#known)) return ''; // a decoder took something back: wait until it stands again
    const piece = certain.slice(this.#known.length);
    this.#known = certain;
    if (this.#window.length >= this.#trimAt) this.#trim(text);
    return piece;
  }

  /**
   * Forgets all but the last tokens, if these alone decode to the same end: a cut inside a character or a stripped
   * space may garble the first characters only, and some must be left so that stripping at the start is over. Otherwise
   * it tries again at twice the length.
   */
  #trim(text: string): void {
    const kept = this.#window.slice(-KEPT_TOKENS);
    const keptText = this.#tokenizer.decodeUncleaned(kept);
    if (commonEnd(text, keptText) < Math.max(1, keptText.length - 3)) {
      this.#trimAt = 2 * this.#window.length;
      return;
    }
    const held = text.length - this.#known.length;
    this.#window = kept;
    this.#known = keptText.slice(0, keptText.length - held);
    this.#trimAt = 2 * KEPT_TOKENS;
  }

  #settle(text: string): string {
    if (!this.#tokenizer.cleansUpSpaces) return text;
    const pending = this.#unsettled + text;
    const settled = UNSETTLED.exec(pending)?.index ?? pending.length;
    this.#unsettled = pending.slice(settled);
    return this.#tokenizer.cleanUp(pending.slice(0, settled));
  }
}

function commonEnd(a: string, b: string): number {
  let length = 0;
  while (length < a.length && length < b.length && a[a.length - 1 - length] === b[b.length - 1 - length]) length++;
  return length;
}
