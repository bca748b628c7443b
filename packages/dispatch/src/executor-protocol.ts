/**
 * What the main thread and a device's worker say to each other. Plain data; buffers are native ids, valid in every
 * thread of the process.
 */

import type { MessagePort } from 'node:worker_threads';
import type { BufferId, DeviceName, DimValues, DType, Program, TensorId } from '@metashard/core';
import type { Segment } from './segments.js';
import type { StreamPortion } from './stream-plan.js';

/** Bytes of one tensor in a checkpoint file. */
export interface FileSource {
  file: string;
  offset: number;
  dtype: DType;
  shape: readonly number[];
  /** The weight is this matrix with its dimensions swapped. */
  transposed?: true;
}

/** How one weight of the Program comes to be. Tensor ids are the Program's. */
export type LoadInstruction =
  | { kind: 'convert'; tensor: TensorId; source: FileSource }
  | { kind: 'quantize'; CB: TensorId; SCB: TensorId; source: FileSource }
  | { kind: 'int8'; CB: TensorId; SCB: TensorId; source: FileSource; scales: FileSource }
  | { kind: 'dequantize'; tensor: TensorId; source: FileSource; scales: FileSource }
  /** From a packed store: the bytes as they are. */
  | { kind: 'stored'; tensor: TensorId; file: string; offset: number; nbytes: number }
  /** From a tensor in memory, of the same dtype; int8 is packed. */
  | { kind: 'memory'; tensor: TensorId; buffer: BufferId; byteOffset: number }
  /** Of no source: a weight that a checkpoint lacks, loaded with `strict: false`. */
  | { kind: 'zero'; tensor: TensorId; SCB?: TensorId };

/** Where a weight goes in a checkpoint file. */
export interface SaveInstruction {
  tensor: TensorId;
  file: string;
  offset: number;
  /** The file holds it with its dimensions swapped. */
  transposed?: true;
  /** The file holds an 8-bit table in this float dtype. */
  dequantize?: { scales: TensorId; dtype: DType };
}

export interface SamplerSizes {
  sequences: number;
  maxSeqLen: number;
  vocabSize: number;
}

/** How a device's weights that it does not hold reach it. */
export interface ExecutorStreams {
  portions: readonly StreamPortion[];
  /** Window that they are copied into; where they are used in place nothing is allocated. */
  windowBytes: number;
  /** Where they are used in place: bytes beyond the window that may keep some of them. */
  keepBytes: number;
  /** Where they are copied: the packed store that holds those on disk. */
  store: { file: string; tensors: ReadonlyMap<TensorId, { offset: number; nbytes: number }> } | null;
  /** Budgets of the CPUs in whose memory some are parked. */
  hostBudgets: ReadonlyMap<DeviceName, number>;
}

export interface ExecutorSetup {
  /** Index of this worker: its bell. */
  worker: number;
  device: DeviceName;
  budgetBytes: number;
  program: Program;
  /** This device's segments. */
  segments: readonly Segment[];
  segmentCount: number;
  /** Worker of each segment. */
  workerOfSegment: readonly number[];
  /** The largest step. */
  dims: DimValues;
  arenaBytes: number;
  scratchBytes: number;
  /** Weights used in place from a packed store, by byte offset in its file. Only for devices that read host memory. */
  mapped: { file: string; tensors: ReadonlyMap<TensorId, { offset: number; nbytes: number }> } | null;
  streams: ExecutorStreams;
  /** Storage tensors to allocate. */
  weights: readonly TensorId[];
  caches: readonly TensorId[];
  constants: readonly TensorId[];
  inputs: readonly TensorId[];
  /** Per own segment index: activation → byte offset in the arena. */
  arenas: ReadonlyMap<number, ReadonlyMap<TensorId, number>>;
  /** Rings into every segment, and the one that carries chosen tokens back to the first. */
  rings: readonly SharedArrayBuffer[];
  tokenRing: SharedArrayBuffer;
  control: SharedArrayBuffer;
  controlRows: number;
  slotWords: number;
  tokenWords: number;
  /** null: no tokens are chosen here. */
  sampler: SamplerSizes | null;
  port: MessagePort;
}

/** Where a segment's inbox lies: tensor → buffer with STEPS_IN_FLIGHT slots of `slotBytes`. */
export interface Inbox {
  segment: number;
  tensors: { tensor: TensorId; buffer: BufferId; slotBytes: number }[];
}

export interface OpenedExecutor {
  threadId: number;
  inboxes: Inbox[];
}

export interface SamplingSpec {
  temperature: number;
  topK: number;
  topP: number;
  repetitionPenalty: number;
  doSample: boolean;
  seed: number;
  /** Ids before the first chosen one, per row; only read with a repetition penalty. */
  prompts: readonly Int32Array[];
}

export interface GenerationRow {
  /** Ids to compute now. */
  ids: Int32Array;
  /** Tokens already in the cache (a chat's earlier turns). */
  cached: number;
  /** Cache blocks, enough for everything this row may become. */
  blocks: Int32Array;
  maxNewTokens: number;
}

export interface GenerationSpec {
  rows: readonly GenerationRow[];
  /** End-of-text ids; empty: none. */
  endIds: readonly number[];
  blocksPerSequence: number;
  outputLogits: boolean;
}

export interface ServeRequest {
  /** For the worker of the first segment: it schedules. Absent: the steps come from the main thread. */
  generation?: GenerationSpec;
  /** For the worker of the last segment. */
  sampling?: SamplingSpec;
}

export interface ExecutorStats {
  device: DeviceName;
  threadId: number;
  budgetBytes: number;
  currentBytes: number;
  peakBytes: number;
  /** By MEMORY_KINDS. */
  peak: number[];
}

/** From a worker to the main thread. */
export type ExecutorMessage =
  | { type: 'progress'; tensor: string; bytes: number }
  | { type: 'tokens'; step: number; rows: Int32Array; ids: Int32Array; logits?: Float32Array }
  /** Rows first … of an output of the current step. */
  | { type: 'output'; name: string; first: number; rows: number; columns: number; data: Float32Array }
  /** Everything of the task just run has been sent. */
  | { type: 'done' };
