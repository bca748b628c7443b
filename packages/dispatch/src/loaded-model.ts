/**
 * A model as programs use it after `loadModel`: forward, generate, loss, what it is and what it takes. Calls made at
 * once run one after another.
 */
import { ArgumentError, DisposedError, KV_BLOCK_SIZE, type ProgramTensor, specBytes } from '@metashard/core';
import type { ParsedConfig } from '@metashard/meta';
import { BlockAllocator } from './block-allocator.js';
import type { ExecutorStats } from './executor-protocol.js';
import type { Executors } from './executors.js';
import {
  type ForwardInputs,
  type ForwardOptions,
  type ForwardResult,
  type Loss,
  lossOf,
  runForward,
} from './forward.js';
import { type ChatCache, type GenerationHost, generatePieces } from './generate.js';
import type { GenerationDefaults } from './generation-config.js';
import type { ModelSource } from './model-source.js';
import type { GeneratedPiece, GenerateOptions, Prompt } from './options.js';
import type { DevicePlan } from './plan.js';
import type { RecordedModel } from './plan-device-map.js';
import type { PlannedProgram } from './plan-program.js';
import type { ThresholdChoice } from './quant-compare/choose-threshold.js';
import { type SaveOptions, saveModel } from './save-checkpoint.js';
import type { ModelTokenizer } from './tokenizer.js';

interface Parts {
  source: ModelSource;
  recorded: RecordedModel;
  planned: PlannedProgram;
  executors: Executors;
  tokenizer: ModelTokenizer | null;
  generationDefaults: GenerationDefaults;
}

export interface DeviceStats extends ExecutorStats {
  /** What the plan promised: weights, KV cache, activations and scratch. */
  plannedBytes: number;
}

export class LoadedModel implements GenerationHost {
  readonly plan: DevicePlan;
  readonly config: ParsedConfig;
  readonly tokenizer: ModelTokenizer | null;
  readonly recorded: RecordedModel;
  readonly executors: Executors;
  readonly generationDefaults: GenerationDefaults;
  /** Free blocks of the KV cache. */
  readonly blocks: BlockAllocator;
  chat: ChatCache | null = null;
  /** What `llmInt8Threshold: "auto"` measured and chose. */
  thresholdChoice: ThresholdChoice | null = null;
  readonly #source: ModelSource;
  readonly #planned: PlannedProgram;
  #queue: Promise<unknown> = Promise.resolve();
  #disposed = false;

  constructor({ source, recorded, planned, executors, tokenizer, generationDefaults }: Parts) {
    this.#source = source;
    this.#planned = planned;
    this.plan = planned.plan;
    this.config = source.config;
    this.tokenizer = tokenizer;
    this.recorded = recorded;
    this.executors = executors;
    this.generationDefaults = generationDefaults;
    this.blocks = new BlockAllocator(Math.ceil(recorded.maxSeqLen / KV_BLOCK_SIZE) * recorded.maxBatchSize);
  }

  /** Module prefix → canonical device name; with `execute_on` where weights are streamed elsewhere. */
  get deviceMap(): DevicePlan['deviceMap'] {
    return this.plan.deviceMap;
  }
  get bosTokenId(): number | null {
    return this.config.bosTokenId;
  }

  /**
   * Logits of every token: float32 [B, T, V]. Throws ShapeError (ragged rows), ArgumentError (too many rows),
   * ContextLengthError, and what a device throws.
   */
  forward(inputs: ForwardInputs, options: ForwardOptions = {}): Promise<ForwardResult> {
    return this.#exclusive(() => {
      this.#dropChat();
      return runForward(this.executors, this.recorded, this.blocks, inputs, options);
    });
  }

  /**
   * Continues a text, token ids, a batch of either, or a chat. Each piece is one token of one row; a row's last has
   * `finishReason` and `usage`.
   * Leaving the loop early stops the run. Throws ArgumentError, ContextLengthError before any compute, and what a
   * device throws.
   */
  async *generate(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<GeneratedPiece, void, undefined> {
    const turn = this.#turn();
    await turn.ready;
    try {
      this.#check();
      yield* generatePieces(this, prompt, options);
    } finally {
      turn.done();
    }
  }

  /** Mean negative log likelihood in nats of each token after the first. Throws ContextLengthError. */
  async loss(textOrIds: string | readonly number[], options: Pick<ForwardOptions, 'signal'> = {}): Promise<Loss> {
    const ids = typeof textOrIds === 'string' ? this.#encode(textOrIds) : textOrIds;
    const { logits } = await this.forward({ inputIds: [ids] }, options);
    return lossOf(logits, ids);
  }

  /**
   * Bytes of parameters and buffers as transformers counts them: int8 weights at one byte, their scales not, a tied
   * weight once.
   */
  memoryFootprint(): number {
    let total = 0;
    for (const tensor of this.recorded.program.tensors as readonly ProgramTensor[]) {
      const isParameter = tensor.kind === 'weight' && !/(^|\.)SCB$/.test(tensor.name ?? '');
      if (isParameter || tensor.kind === 'constant') total += specBytes({ dims: tensor.dims, dtype: tensor.dtype });
    }
    return total;
  }

  /** Per device: its thread, memory now and at most, and what the plan said. Waits for runs under way. */
  stats(): Promise<DeviceStats[]> {
    return this.#exclusive(async () => {
      const stats = await this.executors.stats();
      return stats.map((one) => {
        const planned = this.plan.devices.find((device) => device.name === one.device);
        const {
          weightsBytes = 0,
          kvCacheBytes = 0,
          activationsBytes = 0,
          scratchBytes = 0,
          windowBytes = 0,
        } = planned ?? {};
        return { ...one, plannedBytes: weightsBytes + kvCacheBytes + activationsBytes + scratchBytes + windowBytes };
      });
    });
  }

  /**
   * Writes the model as a Hugging Face folder: float, or 8 bits in bitsandbytes' layout as it was loaded. Throws
   * ArgumentError (a folder that is not empty), CheckpointError (the disk); then nothing is left behind.
   */
  saveCheckpoint(folder: string, options: SaveOptions = {}): Promise<void> {
    return this.#exclusive(() =>
      saveModel(folder, this.#source, this.#planned, this.recorded.program, this.executors, options),
    );
  }

  /** Stops what runs and frees every device. Idempotent. */
  async dispose(): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    this.executors.abort();
    await this.executors.dispose();
  }
  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError('model: expected a loaded model, got a disposed one');
  }

  #encode(text: string): number[] {
    if (this.tokenizer === null)
      throw new ArgumentError('loss: expected token ids: the model folder has no tokenizer.json');
    return this.tokenizer.encode(text);
  }

  /** The kept chat's blocks go back: another call needs the cache. */
  #dropChat(): void {
    if (this.chat !== null) this.blocks.give(this.chat.blocks);
    this.chat = null;
  }

  #turn(): { ready: Promise<void>; done: () => void } {
    let done = (): void => {};
    const ready = this.#queue.then(() => {});
    this.#queue = new Promise<void>((resolve) => {
      done = resolve;
    });
    return { ready, done };
  }

  async #exclusive<T>(task: () => Promise<T>): Promise<T> {
    const turn = this.#turn();
    await turn.ready;
    try {
      this.#check();
      return await task();
    } finally {
      turn.done();
    }
  }
}
