/**
 * From a text to the token windows a comparison runs: consecutive ones of one long text (WikiText), or one per document
 * (stories; LAMBADA, whose last word is to be guessed).
 */
import { readFile } from 'node:fs/promises';
import { ArgumentError, ConfigError } from '@metashard/core';
import type { ModelTokenizer } from '../tokenizer.js';

/** One text cut into consecutive windows, documents of a window each, or token ids of a window each. */
export type QuantText = string | readonly string[] | readonly (readonly number[])[];

export interface WindowOptions {
  /** At most; default 32. */
  windows?: number | undefined;
  /** Windows or documents passed over first; default 0. */
  skip?: number | undefined;
  /** Tokens; default min(the model's, 1024). */
  windowLength?: number | undefined;
  /** Documents end with a word to be guessed: those too long lose their beginning, not their end. */
  lastWords?: boolean | undefined;
}

export interface TextWindow {
  ids: readonly number[];
  /** Where the tokens of the last word begin; null: it is not asked for. */
  lastWord: number | null;
}

const DEFAULT_WINDOWS = 32;
const DEFAULT_WINDOW_LENGTH = 1024;

/**
 * Cuts a text into windows of at least two tokens. Only documents begin with the tokenizer's special tokens each; one
 * long text does once. Throws ArgumentError: nothing left, no tokenizer for text, a length the model does not have.
 */
export function makeWindows(
  text: QuantText,
  tokenizer: ModelTokenizer | null,
  maxPositions: number | null,
  { windows = DEFAULT_WINDOWS, skip = 0, windowLength, lastWords = false }: WindowOptions,
): TextWindow[] {
  const length = windowLength ?? Math.min(maxPositions ?? DEFAULT_WINDOW_LENGTH, DEFAULT_WINDOW_LENGTH);
  checkCount('windows', windows, 1);
  checkCount('skip', skip, 0);
  checkCount('windowLength', length, 2);
  if (maxPositions !== null && length > maxPositions) {
    throw new ArgumentError(`windowLength: expected at most the model's ${maxPositions} tokens, got ${length}`);
  }
  const encode = (one: string): number[] => {
    if (tokenizer !== null) return tokenizer.encode(one);
    throw new ArgumentError('text: expected token ids, as the model has no tokenizer.json');
  };
  const cut =
    typeof text === 'string'
      ? consecutive(encode(text), length).slice(skip, skip + windows)
      : text.slice(skip, skip + windows).map((one): TextWindow => {
          if (typeof one !== 'string') return { ids: one.slice(0, length), lastWord: null };
          return lastWords
            ? lastWordWindow(one, encode, length)
            : { ids: encode(one).slice(0, length), lastWord: null };
        });
  const usable = cut.filter(({ ids }) => ids.length >= 2);
  if (usable.length > 0) return usable;
  throw new ArgumentError(`text: expected at least two tokens after ${skip} windows, got none`);
}

function consecutive(ids: readonly number[], length: number): TextWindow[] {
  const count = Math.max(1, Math.floor(ids.length / length)); // the rest at the end is left out
  return Array.from({ length: count }, (_, w) => ({ ids: ids.slice(w * length, (w + 1) * length), lastWord: null }));
}

/** The tokens that differ from those of the text without its last word are the word's. */
function lastWordWindow(text: string, encode: (text: string) => number[], length: number): TextWindow {
  const whole = encode(text.trimEnd());
  const before = encode(text.trimEnd().replace(/\s+\S+$/, ''));
  let first = 0;
  while (first < before.length && first < whole.length && before[first] === whole[first]) first++;
  const dropped = Math.max(0, whole.length - length);
  const lastWord = first - dropped;
  const isAskable = lastWord >= 1 && first < whole.length;
  return { ids: whole.slice(dropped), lastWord: isAskable ? lastWord : null };
}

function checkCount(name: string, value: number, least: number): void {
  if (!Number.isInteger(value) || value < least)
    throw new ArgumentError(`${name}: expected a whole number of at least ${least}, got ${value}`);
}

/**
 * Reads a text file: `.jsonl` is a document per line, the `text` of an object or a string, whose last words are asked
 * for; `.json` is a list of documents; everything else is one text. Throws ConfigError.
 */
export async function readTextFile(
  file: string,
  setting = '--text',
): Promise<{ text: string | string[]; lastWords: boolean }> {
  let content: string;
  try {
    content = await readFile(file, 'utf8');
  } catch (cause) {
    throw new ConfigError(`${setting}: expected a readable file, got ${(cause as Error).message}`, { cause });
  }
  if (file.endsWith('.jsonl')) {
    const lines = content.split('\n').filter((line) => line.trim() !== '');
    return {
      text: lines.map((line, i) => documentOf(parseJson(line, `${file}:${i + 1}`), `${file}:${i + 1}`)),
      lastWords: true,
    };
  }
  if (!file.endsWith('.json')) return { text: content, lastWords: false };
  const list = parseJson(content, file);
  if (!Array.isArray(list)) throw new ConfigError(`${file}: expected a list of texts`);
  return { text: list.map((one, i) => documentOf(one, `${file}: [${i}]`)), lastWords: false };
}

function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`${where}: expected JSON, got ${(cause as Error).message}`, { cause });
  }
}

function documentOf(value: unknown, where: string): string {
  const text = typeof value === 'object' && value !== null ? (value as { text?: unknown }).text : value;
  if (typeof text === 'string') return text;
  throw new ConfigError(`${where}: expected a text or an object with text, got ${JSON.stringify(value)?.slice(0, 40)}`);
}
