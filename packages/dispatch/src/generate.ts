/** `model.generate`: prompts in, pieces of text out as they come. Tokens are made by the executors; here they become text, stop strings and finish reasons. */
import { ArgumentError, ContextLengthError, KV_BLOCK_SIZE } from '@metashard/core';
import { AsyncQueue } from './async-queue.js';
import type { BlockAllocator } from './block-allocator.js';
import type { GenerationRow, SamplingSpec } from './executor-protocol.js';
import type { Executors } from './executors.js';
import type { GenerationDefaults } from './generation-config.js';
import type { GeneratedPiece, GenerateOptions, Prompt } from './options.js';
import type { RecordedModel } from './plan-device-map.js';
import { StopStrings } from './stop-strings.js';
import { type ModelTokenizer, StreamDecoder } from './tokenizer.js';

/** What generation needs of a loaded model. */
export interface GenerationHost {
  readonly executors: Executors;
  readonly recorded: RecordedModel;
  readonly tokenizer: ModelTokenizer | null;
  readonly generationDefaults: GenerationDefaults;
  readonly blocks: BlockAllocator;
  readonly bosTokenId: number | null;
  /** The cache of the chat that went on last. */
  chat: ChatCache | null;
}

/** Tokens of a chat that lie in the cache, and where. */
export interface ChatCache {
  ids: number[];
  blocks: Int32Array;
}

/** Enough of a prompt's end that decoding the first new token knows what stands before it. */
const DECODER_CONTEXT = 16;

/** Checks everything, then runs. Errors of arguments are thrown before any compute. */
export async function* generatePieces(
  host: GenerationHost,
  prompt: Prompt,
  options: GenerateOptions,
): AsyncGenerator<GeneratedPiece, void, undefined> {
  const { prompts, isChat } = encodePrompt(host, prompt);
  const settings = resolveSettings(host, options);
  const limits = prompts.map((ids) =>
    checkLength(host, ids.length, options.maxNewTokens, settings.maxNewTokens ?? fromMaxLength(host, ids.length)),
  );
  const { rows, finish } = reserveRows(host, prompts, limits, isChat);
  const writers = prompts.map((ids, row) => new RowWriter(host.tokenizer, ids, row, limits[row] as number, settings));
  const queue = new AsyncQueue<GeneratedPiece>();
  const chosen: number[][] = prompts.map(() => []);
  const running = host.executors.run(
    {
      generation: {
        rows,
        endIds: settings.endIds,
        blocksPerSequence: Math.ceil(host.recorded.maxSeqLen / KV_BLOCK_SIZE),
        outputLogits: options.outputLogits ?? false,
      },
      sampling: { ...settings.sampling, prompts: prompts.map((ids) => Int32Array.from(ids)) },
    },
    (message) => {
      if (message.type !== 'tokens') return;
      for (const [i, row] of message.rows.entries()) {
        const id = message.ids[i] as number;
        chosen[row]?.push(id);
        const writer = writers[row] as RowWriter;
        if (writer.finished) continue;
        const V = host.recorded.vocabSize as number;
        const piece = writer.write(id, message.logits?.slice(i * V, (i + 1) * V));
        if (writer.finished) host.executors.stopRow(row);
        queue.push(piece);
      }
    },
    options.signal,
  );
  running.then(
    () => {
      for (const writer of writers) if (!writer.finished) queue.push(writer.abort());
      queue.end();
    },
    (error: unknown) => queue.fail(error),
  );
  let completed = false;
  try {
    yield* queue;
    completed = true;
  } finally {
    if (!completed) host.executors.abort();
    await running.catch(() => {});
    finish(chosen, completed);
  }
}

interface Settings {
  sampling: Omit<SamplingSpec, 'prompts'>;
  endIds: readonly number[];
  stop: readonly string[];
  maxNewTokens: number | undefined;
}

function resolveSettings(
  { generationDefaults: defaults, tokenizer }: GenerationHost,
  options: GenerateOptions,
): Settings {
  const asked = options.stop ?? defaults.stop ?? [];
  const stop = typeof asked === 'string' ? [asked] : asked;
  if (stop.length > 0 && tokenizer === null) throw new ArgumentError('stop: expected a model with a tokenizer');
  const sampling = {
    doSample: options.doSample ?? defaults.doSample ?? false,
    temperature: options.temperature ?? defaults.temperature ?? 1,
    topK: options.topK ?? defaults.topK ?? 0,
    topP: options.topP ?? defaults.topP ?? 1,
    repetitionPenalty: options.repetitionPenalty ?? defaults.repetitionPenalty ?? 1,
    seed: options.seed ?? Date.now() % 2 ** 31,
  };
  need(sampling.temperature >= 0, 'temperature', 'at least 0', sampling.temperature);
  need(Number.isInteger(sampling.topK) && sampling.topK >= 0, 'topK', 'a whole number of at least 0', sampling.topK);
  need(sampling.topP > 0 && sampling.topP <= 1, 'topP', 'above 0 and at most 1', sampling.topP);
  need(sampling.repetitionPenalty > 0, 'repetitionPenalty', 'above 0', sampling.repetitionPenalty);
  need(Number.isInteger(sampling.seed), 'seed', 'a whole number', sampling.seed);
  const { maxNewTokens = defaults.maxNewTokens } = options;
  need(
    maxNewTokens === undefined || (Number.isInteger(maxNewTokens) && maxNewTokens >= 1),
    'maxNewTokens',
    'a whole number of at least 1',
    maxNewTokens,
  );
  return { sampling, stop, endIds: options.ignoreEos ? [] : defaults.eosTokenIds, maxNewTokens };
}

function need(holds: boolean, name: string, expected: string, got: unknown): void {
  if (!holds) throw new ArgumentError(`${name}: expected ${expected}, got ${String(got)}`);
}

/** Every form of a prompt as rows of ids. */
function encodePrompt(host: GenerationHost, prompt: Prompt): { prompts: number[][]; isChat: boolean } {
  const isChat = typeof prompt === 'object' && 'messages' in prompt;
  const prompts = isChat
    ? [tokenizerOf(host).encode(tokenizerOf(host).applyChatTemplate(prompt.messages), { addSpecialTokens: false })]
    : typeof prompt === 'string'
      ? [encodeText(host, prompt)]
      : encodeRows(host, prompt);
  if (prompts.length === 0) throw new ArgumentError('generate: expected a prompt, got an empty list');
  const { maxBatchSize, vocabSize } = host.recorded;
  if (prompts.length > maxBatchSize) {
    throw new ArgumentError(`generate: expected at most maxBatchSize ${maxBatchSize} prompts, got ${prompts.length}`, {
      hint: 'load the model with a larger maxBatchSize',
    });
  }
  for (const ids of prompts) {
    const bad = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= (vocabSize as number));
    if (bad !== undefined)
      throw new ArgumentError(`generate: expected token ids from 0 to ${(vocabSize as number) - 1}, got ${bad}`);
    if (ids.length === 0) throw new ArgumentError('generate: expected at least one token in every prompt, got none');
  }
  return { prompts, isChat };
}

function encodeRows(host: GenerationHost, prompt: readonly (number | string | readonly number[])[]): number[][] {
  if (prompt.length > 0 && prompt.every((entry) => typeof entry === 'number')) return [prompt as number[]];
  return prompt.map((entry) => {
    if (typeof entry === 'string') return encodeText(host, entry);
    if (Array.isArray(entry)) return [...entry];
    throw new ArgumentError('generate: expected texts, ids or rows of ids, got a mixture');
  });
}

/** An empty text is the begin token alone, where the model has one. */
function encodeText(host: GenerationHost, text: string): number[] {
  const ids = tokenizerOf(host).encode(text);
  return ids.length === 0 && host.bosTokenId !== null ? [host.bosTokenId] : ids;
}

function tokenizerOf({ tokenizer }: GenerationHost): ModelTokenizer {
  if (tokenizer !== null) return tokenizer;
  throw new ArgumentError('generate: expected token ids, got a text: the model folder has no tokenizer.json', {
    hint: 'give arrays of token ids',
  });
}

/** How many tokens a row may get. Throws ContextLengthError when prompt and asked-for tokens do not fit. */
function checkLength(
  { recorded }: GenerationHost,
  promptTokens: number,
  asked: number | undefined,
  wanted: number | undefined,
): number {
  const { maxSeqLen } = recorded;
  const room = maxSeqLen - promptTokens;
  if (room < 1 || (asked ?? 0) > room) {
    const tokens = promptTokens + (asked ?? 1);
    throw new ContextLengthError(
      `generate: expected at most maxSeqLen ${maxSeqLen} tokens, got a prompt of ${promptTokens} and ${asked ?? 1} new`,
      {
        hint: 'shorten the prompt, ask for fewer tokens, or load the model with a larger maxSeqLen',
        details: { tokens, maxSeqLen },
      },
    );
  }
  return Math.min(wanted ?? room, room);
}

/** New tokens that generation_config.json's max_length leaves a prompt; at least 1. */
function fromMaxLength({ generationDefaults }: GenerationHost, promptTokens: number): number | undefined {
  const { maxLength } = generationDefaults;
  return maxLength === undefined ? undefined : Math.max(1, maxLength - promptTokens);
}

/** Takes cache blocks for every row; a chat that only grew keeps what it has computed. `finish` gives them back or keeps the chat's. */
function reserveRows(host: GenerationHost, prompts: readonly number[][], limits: readonly number[], isChat: boolean) {
  const old = host.chat;
  const ids = prompts[0] as number[];
  const grows = isChat && old !== null && ids.length > old.ids.length && old.ids.every((id, i) => id === ids[i]);
  if (old !== null && !grows) host.blocks.give(old.blocks);
  host.chat = null;
  const cached = grows ? (old as ChatCache).ids.length : 0;
  const kept = grows ? (old as ChatCache).blocks : new Int32Array(0);
  const rows = prompts.map((prompt, i): GenerationRow => {
    const total = prompt.length + (limits[i] as number);
    const extra = host.blocks.take(Math.max(0, total - kept.length * KV_BLOCK_SIZE));
    return {
      ids: Int32Array.from(prompt.slice(cached)),
      cached,
      blocks: Int32Array.of(...kept, ...extra),
      maxNewTokens: limits[i] as number,
    };
  });
  const finish = (chosen: readonly number[][], completed: boolean): void => {
    if (isChat && completed) {
      // The last token chosen was never computed.
      host.chat = { ids: [...ids, ...(chosen[0] as number[]).slice(0, -1)], blocks: (rows[0] as GenerationRow).blocks };
    } else {
      for (const row of rows) host.blocks.give(row.blocks);
    }
  };
  return { rows, finish };
}

/** One row's tokens as text. */
class RowWriter {
  finished = false;
  readonly #decoder: StreamDecoder | null;
  readonly #stops: StopStrings;
  readonly #endIds: ReadonlySet<number>;
  #count = 0;

  constructor(
    tokenizer: ModelTokenizer | null,
    readonly prompt: readonly number[],
    readonly row: number,
    readonly limit: number,
    settings: Settings,
  ) {
    this.#decoder = tokenizer === null ? null : new StreamDecoder(tokenizer);
    this.#decoder?.push(prompt.slice(-DECODER_CONTEXT));
    this.#stops = new StopStrings(settings.stop);
    this.#endIds = new Set(settings.endIds);
  }

  write(id: number, logits: Float32Array | undefined): GeneratedPiece {
    this.#count++;
    const ended = this.#endIds.has(id);
    const { text, hit } = this.#stops.push(this.#decoder?.push(id) ?? '');
    const piece: GeneratedPiece = { text, tokenIds: [id], row: this.row };
    if (logits !== undefined) piece.logits = logits;
    if (hit !== null || ended) this.#finish(piece, 'stop', hit !== null);
    else if (this.#count >= this.limit) this.#finish(piece, 'length', false);
    return piece;
  }

  abort(): GeneratedPiece {
    const piece: GeneratedPiece = { text: '', tokenIds: [], row: this.row };
    this.#finish(piece, 'abort', false);
    return piece;
  }

  /** The last piece: with what was held back, unless a stop string swallowed it. */
  #finish(piece: GeneratedPiece, reason: 'stop' | 'length' | 'abort', stopped: boolean): void {
    this.finished = true;
    if (!stopped) {
      const last = this.#stops.push(this.#decoder?.flush() ?? '');
      piece.text += last.text + (last.hit === null ? this.#stops.flush() : '');
    }
    piece.finishReason = reason;
    piece.usage = { promptTokens: this.prompt.length, completionTokens: this.#count };
  }
}
