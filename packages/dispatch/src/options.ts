/** Options of `loadModel` and `generate`, as programs give them (camelCase). YAML and flags become these in `config/`. Defaults are in the comments and applied where used. */
import type { DType } from '@metashard/core';
import type { Int8Activations } from '@metashard/meta';
import type { ExpectedUse } from './costs.js';
import type { Objective } from './placement.js';
import type { DeviceMap, Strategy } from './plan.js';

/** Dtypes a key-value cache may have. */
export const ATTENTION_DTYPES = ['float32', 'bfloat16'] as const;
export type AttentionDtype = (typeof ATTENTION_DTYPES)[number];
export const KV_CACHE_DTYPES = ['float32', 'float16', 'bfloat16', 'int8'] as const;
export type KvCacheDtype = (typeof KV_CACHE_DTYPES)[number];

/** What a library may say; silent unless one is given. Any pino or console fits. */
export interface Logger {
  info(message: string): void;
  warn(message: string): void;
  debug?(message: string): void;
}

export interface LoadProgress {
  device: string;
  /** The tensor just placed. */
  tensor: string;
  loadedBytes: number;
  totalBytes: number;
  /** Over all devices. */
  allLoadedBytes: number;
  allTotalBytes: number;
  elapsedMs: number;
  /** At the rate so far. */
  remainingMs: number;
}

export interface LoadModelOptions {
  /** Default "auto". */
  deviceMap?: Strategy | DeviceMap;
  /** Default: every CUDA device, then cpu. A given list is final. */
  devices?: readonly (string | number)[];
  /** What `auto` minimizes: "latency", a request's time (default), or "throughput", its slowest stage. */
  objective?: Objective;
  /**
   * What plans weigh prompts against new tokens by. Default: 512 prompt tokens, 128 new ones, `maxBatchSize` sequences.
   */
  expectedUse?: Partial<ExpectedUse>;
  /** Bytes or words ("70GiB") per device. Default: 0.9 of what is available; CPU devices share theirs. */
  maxMemory?: Record<string, string | number>;
  /** How float weights are stored. Default "auto": as in the checkpoint. The CPU computes in float32. */
  dtype?: DType | 'auto';
  /** Default: float, unless the checkpoint is already in 8 bits. */
  loadIn8bit?: boolean;
  /**
   * Default 6.0. "auto": the largest whose loss on `llmInt8ThresholdText` stays near float's, measured before loading.
   */
  llmInt8Threshold?: number | 'auto';
  /** File of the text "auto" measures on: any text file, .json (a list of texts) or .jsonl. */
  llmInt8ThresholdText?: string;
  /** Added to the default (the output head). */
  llmInt8SkipModules?: readonly string[];
  /** The output head in 8 bits, too, and the embeddings it is tied to: one int8 table is stored. Default: as the checkpoint is saved, else false. */
  llmInt8Head?: boolean;
  /**
   * What 8-bit weights are multiplied with. Default "int8": LLM.int8(). "float": activations stay in float32, for models that lose quality to 8-bit ones;
   * "bfloat16": rounded to it where there are many rows (prompts) and the processor is made for it.
   */
  int8Activations?: Int8Activations;
  /** Default "per-batch", as published; "per-row" makes results independent of batch mates. */
  outliers?: 'per-batch' | 'per-row';
  /** "bfloat16": attention over many query tokens (prompts) rounds what it multiplies to it, where the processor is made for it. Default "float32". */
  attention?: AttentionDtype;
  /** Keys and values are rounded to it as they are stored. Default "float32"; 16 bits halve the cache, "int8" (a scale per token and head; CPU devices only) takes about a quarter. */
  kvCacheDtype?: KvCacheDtype;
  /** Tokens of one sequence, prompt and new ones. Default min(the model's, 2048). */
  maxSeqLen?: number;
  /** Sequences at once. Default 1. */
  maxBatchSize?: number;
  /** Threads of the CPU backend, all its devices together. Default: the processors this process may use. */
  threads?: number;
  /** Left free on every device, bytes or words. Default 0. */
  reserve?: string | number;
  /** Where packed stores lie. Default: METASHARD_CACHE, else the user's cache folder. */
  offloadFolder?: string;
  /** A packed store (`metashard pack`): "use" one that is there (default), "write" it on the first load, "ignore" it. */
  packedStore?: 'use' | 'write' | 'ignore';
  /**
   * Default true: tensors of the checkpoint that are missing, unexpected or of another shape are an error that lists
   * them. false: the logger is told, unexpected ones are left out and weights without a tensor are zero.
   */
  strict?: boolean;
  /** Of a cached model. Default "main". */
  revision?: string;
  onProgress?: (progress: LoadProgress) => void;
  signal?: AbortSignal;
  logger?: Logger;
}

export interface ChatMessage {
  role: string;
  content: string;
}

/** A text, its token ids, several of either, or a chat. */
export type Prompt =
  | string
  | readonly number[]
  | readonly string[]
  | readonly (readonly number[])[]
  | { messages: readonly ChatMessage[] };

export interface GenerateOptions {
  /** Default: generation_config.json, else what the context leaves. */
  maxNewTokens?: number;
  /** Default: generation_config.json, else false (greedy). */
  doSample?: boolean;
  temperature?: number;
  topK?: number;
  topP?: number;
  repetitionPenalty?: number;
  /** Default: from the clock; the one used is in no output, so give one to repeat a run. */
  seed?: number;
  stop?: string | readonly string[];
  /** Do not stop at end-of-text tokens. Default false. */
  ignoreEos?: boolean;
  /** Yield each step's logits. Default false. */
  outputLogits?: boolean;
  signal?: AbortSignal;
}

export interface GeneratedPiece {
  text: string;
  tokenIds: number[];
  /** Which sequence of the batch. */
  row: number;
  logits?: Float32Array;
  /** On a row's last piece only. */
  finishReason?: 'stop' | 'length' | 'abort';
  usage?: { promptTokens: number; completionTokens: number };
}
