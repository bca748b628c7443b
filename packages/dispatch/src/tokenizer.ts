/**
 * A model's tokenizer: text ↔ token ids and chats → prompts, over tokenizer.json and tokenizer_config.json as the
 * Hugging Face libraries write them. The algorithms are @huggingface/tokenizers'; here are reading, checking and
 * errors. Files are untrusted: whatever is wrong with them is a CheckpointError.
 */
import { existsSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import type * as library from '@huggingface/tokenizers';
import { ArgumentError, CheckpointError, MetashardError } from '@metashard/core';
import { type ChatTemplateSource, findChatTemplate, renderChatTemplate } from './chat-template.js';
import type { ChatMessage } from './options.js';

export { StreamDecoder } from './stream-decoder.js';

/** Loaded by the first tokenizer: a model may be run on ids alone. */
const libraryModule = (): typeof library => createRequire(import.meta.url)('@huggingface/tokenizers');

const MAX_FILE_BYTES = 256 * 2 ** 20;
/** Ids beyond this are refused: they would make tables of gigabytes. */
const MAX_TOKEN_ID = 2 ** 24;
/** What the library implements; files of old versions name no type. */
const MODEL_TYPES: readonly unknown[] = ['BPE', 'WordPiece', 'Unigram'];
const SPECIAL_TOKEN_KEYS = ['bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token'];

type Json = Record<string, unknown>;

/** What is used of the library; its own declarations do not resolve under NodeNext. */
interface LibraryTokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: (number | undefined)[] };
  decode(ids: number[], options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean }): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
  get_added_tokens_decoder(): Map<number, { special: boolean }>;
}

/**
 * Reads the tokenizer of a model's folder; null where there is no tokenizer.json. tokenizer_config.json may be missing.
 * Throws CheckpointError (details: file).
 */
export async function loadTokenizer(folder: string): Promise<ModelTokenizer | null> {
  const file = join(folder, 'tokenizer.json');
  const configFile = join(folder, 'tokenizer_config.json');
  if (!existsSync(file)) return null;
  const description = await readJson(file);
  const config = existsSync(configFile) ? await readJson(configFile) : {};
  checkDescription(description, file);
  return new ModelTokenizer(file, description, config, findChatTemplate(folder, config));
}

/** Made by `loadTokenizer`. */
export class ModelTokenizer {
  /** Texts of bos_token, eos_token and so on, where the model names them. */
  readonly specialTokens: Readonly<Record<string, string>>;
  /**
   * Whether decode removes the spaces before punctuation (clean_up_tokenization_spaces; absent means no, as in
   * transformers 5).
   */
  readonly cleansUpSpaces: boolean;
  readonly #file: string;
  readonly #tokenizer: LibraryTokenizer;
  readonly #specialIds = new Set<number>();
  readonly #chatTemplate: ChatTemplateSource | null;

  constructor(file: string, description: Json, config: Json, chatTemplate: ChatTemplateSource | null) {
    this.#file = file;
    this.#chatTemplate = chatTemplate;
    this.specialTokens = readSpecialTokens(config);
    this.cleansUpSpaces = config.clean_up_tokenization_spaces === true;
    const parts = { decoder: null, post_processor: null, pre_tokenizer: null, normalizer: null, ...description };
    const { Tokenizer } = libraryModule();
    this.#tokenizer = this.#guard('build', (): LibraryTokenizer => new Tokenizer(parts, libraryConfig(config)));
    for (const [id, token] of this.#tokenizer.get_added_tokens_decoder()) if (token.special) this.#specialIds.add(id);
    for (const text of [...Object.values(this.specialTokens), ...additionalTokens(config)]) {
      const id = this.#tokenizer.token_to_id(text);
      if (id !== undefined) this.#specialIds.add(id);
    }
    // A short text through all its parts, so that a broken file is found when it is loaded and not at the first prompt.
    this.decode(this.encode('a b'));
  }

  get hasChatTemplate(): boolean {
    return this.#chatTemplate !== null;
  }

  /** Id of a token's text, or undefined. */
  tokenId(token: string): number | undefined {
    return this.#tokenizer.token_to_id(token);
  }

  /**
   * Token ids of a text. `addSpecialTokens` (default true): with the tokens the model's template puts around a text,
   * such as the begin token.
   */
  encode(text: string, { addSpecialTokens = true }: { addSpecialTokens?: boolean } = {}): number[] {
    if (typeof text !== 'string') throw new ArgumentError(`encode: expected a text, got ${typeof text}`);
    const { ids } = this.#guard('encode', () => this.#tokenizer.encode(text, { add_special_tokens: addSpecialTokens }));
    // Characters without a token, in a vocabulary without an unknown token, have no id.
    return ids.filter((id): id is number => Number.isInteger(id) && (id as number) >= 0);
  }

  /**
   * Text of token ids; ids without a token are left out. `skipSpecialTokens` (default true) leaves out end-of-text and
   * the like.
   */
  decode(ids: readonly number[], { skipSpecialTokens = true }: { skipSpecialTokens?: boolean } = {}): string {
    return this.cleanUp(this.decodeUncleaned(ids.filter((id) => this.isDecoded(id, skipSpecialTokens))));
  }

  /** Whether decode shows an id. */
  isDecoded(id: number, skipSpecialTokens: boolean): boolean {
    return this.#tokenizer.id_to_token(id) !== undefined && !(skipSpecialTokens && this.#specialIds.has(id));
  }

  /** `decode` of ids that all have a token, without `cleanUp`: what StreamDecoder builds on. */
  decodeUncleaned(ids: readonly number[]): string {
    if (ids.length === 0) return '';
    const options = { skip_special_tokens: false, clean_up_tokenization_spaces: false };
    return this.#guard('decode', () => this.#tokenizer.decode([...ids], options));
  }

  /**
   * Removes the spaces before punctuation and English contractions, if the model asks for it: transformers'
   * clean_up_tokenization.
   */
  cleanUp(text: string): string {
    if (!this.cleansUpSpaces) return text;
    let cleaned = text;
    for (const pattern of [' .', ' ?', ' !', ' ,', " ' ", " n't", " 'm", " 's", " 've", " 're"]) {
      cleaned = cleaned.replaceAll(pattern, pattern.trim());
    }
    return cleaned;
  }

  /**
   * The prompt text of a chat. It holds its special tokens: encode it with `addSpecialTokens: false`.
   * Throws ArgumentError (no template, or one that refuses these messages) and CheckpointError (a broken template).
   */
  applyChatTemplate(
    messages: readonly ChatMessage[],
    { addGenerationPrompt = true }: { addGenerationPrompt?: boolean } = {},
  ): string {
    if (this.#chatTemplate === null) {
      throw new ArgumentError(`chat template: expected one beside ${this.#file}, got none`, {
        hint: 'give the prompt as text; models for chats are usually named -Instruct or -Chat',
      });
    }
    checkMessages(messages);
    const context = { addGenerationPrompt, specialTokens: this.specialTokens };
    return renderChatTemplate(this.#chatTemplate, messages, context);
  }

  /** Runs the library, whose errors are of any kind and say nothing of the file. */
  #guard<Result>(what: string, run: () => Result): Result {
    try {
      return run();
    } catch (error) {
      if (MetashardError.isInstance(error)) throw error;
      const message = String((error as Error)?.message ?? error).split('\n', 1)[0];
      throw new CheckpointError(`${this.#file}: expected a tokenizer that works, got an error in ${what}: ${message}`, {
        details: { file: this.#file },
        cause: error,
      });
    }
  }
}

async function readJson(file: string): Promise<Json> {
  const { size } = await stat(file);
  if (size > MAX_FILE_BYTES) {
    throw new CheckpointError(`${file}: expected at most ${MAX_FILE_BYTES} bytes, got ${size}`, { details: { file } });
  }
  let value: unknown;
  try {
    value = JSON.parse(await readFile(file, 'utf8'));
  } catch (error) {
    throw new CheckpointError(`${file}: expected JSON, got ${(error as Error).message.split('\n', 1)[0]}`, {
      details: { file },
      cause: error,
    });
  }
  if (!isObject(value)) throw new CheckpointError(`${file}: expected a JSON object`, { details: { file } });
  return value;
}

/** Checks what the library takes on trust: shapes of the tables and ranges of ids. */
function checkDescription(description: Json, file: string): void {
  const fail = (what: string) => new CheckpointError(`${file}: ${what}`, { details: { file } });
  const { model, added_tokens: addedTokens = [] } = description;
  if (!isObject(model)) throw fail(`model: expected an object, got ${JSON.stringify(model) ?? 'nothing'}`);
  if (!Array.isArray(addedTokens)) throw fail('added_tokens: expected a list');
  description.added_tokens = addedTokens;
  if (model.type !== undefined && !MODEL_TYPES.includes(model.type)) {
    throw fail(`model.type: expected one of ${MODEL_TYPES.join(', ')}, got ${JSON.stringify(model.type)}`);
  }
  for (const token of addedTokens as unknown[]) {
    if (!isObject(token) || typeof token.content !== 'string' || !isTokenId(token.id)) {
      throw fail(`added_tokens: expected {id, content}, got ${JSON.stringify(token)?.slice(0, 60)}`);
    }
  }
  const { vocab } = model;
  if (Array.isArray(vocab)) {
    if (vocab.length > MAX_TOKEN_ID) throw fail(`model.vocab: expected at most ${MAX_TOKEN_ID} tokens`);
    const bad = vocab.find((entry: unknown) => !Array.isArray(entry) || typeof entry[0] !== 'string');
    if (bad !== undefined) throw fail(`model.vocab: expected [token, score], got ${JSON.stringify(bad)?.slice(0, 60)}`);
  } else if (isObject(vocab)) {
    const bad = Object.entries(vocab).find(([, id]) => !isTokenId(id));
    if (bad !== undefined)
      throw fail(`model.vocab: expected ids below ${MAX_TOKEN_ID}, got ${JSON.stringify(bad).slice(0, 60)}`);
  } else {
    throw fail('model.vocab: expected a map or a list of tokens');
  }
}

function isTokenId(value: unknown): boolean {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) < MAX_TOKEN_ID;
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A special token is a text or an object with `content`. */
function tokenText(value: unknown): string | undefined {
  if (isObject(value)) return typeof value.content === 'string' ? value.content : undefined;
  return typeof value === 'string' ? value : undefined;
}

function readSpecialTokens(config: Json): Record<string, string> {
  const found = SPECIAL_TOKEN_KEYS.map((key) => [key, tokenText(config[key])] as const);
  return Object.fromEntries(found.filter((entry): entry is [string, string] => entry[1] !== undefined));
}

function additionalTokens(config: Json): string[] {
  const { additional_special_tokens: tokens } = config;
  return Array.isArray(tokens) ? tokens.map(tokenText).filter((text) => text !== undefined) : [];
}

/** What the library reads of tokenizer_config.json, with tokens as texts. */
function libraryConfig(config: Json): Json {
  return { ...config, ...readSpecialTokens(config), additional_special_tokens: additionalTokens(config) };
}

function checkMessages(messages: readonly ChatMessage[]): void {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new ArgumentError('messages: expected a list of { role, content }, got none');
  }
  for (const [i, message] of messages.entries()) {
    if (typeof message?.role !== 'string' || typeof message.content !== 'string') {
      throw new ArgumentError(`messages[${i}]: expected { role, content } with two texts`);
    }
  }
}
