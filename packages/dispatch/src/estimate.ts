/**
 * What a model would take, from its config alone: weights per dtype, its largest block, its KV cache, and how many of
 * some common GPUs hold it in 8 bits.
 * Every figure is the planner's, of a model recorded on meta.
 */
import { basename, resolve } from 'node:path';
import {
  DTYPES,
  type DType,
  elementCount,
  InsufficientMemoryError,
  KV_BLOCK_SIZE,
  type Program,
} from '@metashard/core';
import { type DeviceBudget, resolveDevices } from './devices.js';
import { recordSource } from './load-model.js';
import { type ModelSource, openModelSource } from './model-source.js';
import type { PlanModule } from './plan.js';
import { planRecorded, type RecordedModel } from './plan-device-map.js';

export interface EstimateOptions {
  /** Default min(the model's, 2048). */
  maxSeqLen?: number | undefined;
  /** Default 1. */
  maxBatchSize?: number | undefined;
  /** Of a cached model. Default "main". */
  revision?: string | undefined;
}

export interface ModelEstimate {
  model: string;
  parameters: number;
  maxSeqLen: number;
  maxBatchSize: number;
  dtypes: DtypeEstimate[];
  /** Of one sequence. */
  kvCache: { tokens: number; float32Bytes: number; float16Bytes: number };
  /** In 8 bits, at `maxSeqLen` and `maxBatchSize`. */
  setups: SetupEstimate[];
}

export interface DtypeEstimate {
  /** `int8`: linear layers in 8 bits, the rest as in the config. */
  dtype: 'float32' | 'float16' | 'int8';
  weightsBytes: number;
  /** The largest of the blocks that are never cut; null for a model without blocks. */
  largestBlock: { module: string; bytes: number } | null;
  /** Block or not: what one device must hold at least. */
  largestModule: { module: string; bytes: number };
}

export interface SetupEstimate {
  name: string;
  memoryBytes: number;
  /** What the planner may use of it. */
  offeredBytes: number;
  /** How many are needed; null: more than 64, or one module is larger than a device. */
  count: number | null;
  /** Free on the fullest of them. */
  freeBytes: number | null;
  /** What one device would have to hold, where it does not fit. */
  problem: { neededBytes: number; message: string } | null;
}

/**
 * Memory sizes as sold, in GiB; 0.9 of each is offered, which leaves room for the driver and for what it calls a GiB.
 */
const GPUS: readonly { name: string; GiB: number }[] = [
  { name: 'T4', GiB: 16 },
  { name: 'RTX 3090, RTX 4090, L4, A10', GiB: 24 },
  { name: 'A100 40GB', GiB: 40 },
  { name: 'A100 80GB, H100', GiB: 80 },
  { name: 'H200', GiB: 141 },
];
const OFFERED_SHARE = 0.9;
const MOST_DEVICES = 64;
const KV_TOKENS = 1024;

/**
 * Needs a folder with a config.json, or a cached id. Throws ModelNotFoundError, CheckpointError,
 * UnsupportedConfigError, ConfigError.
 */
export async function estimateModel(nameOrFolder: string, options: EstimateOptions = {}): Promise<ModelEstimate> {
  const open = (dtype: DType | 'auto', loadIn8bit: boolean): Promise<ModelSource> =>
    openModelSource(nameOrFolder, { dtype, loadIn8bit, ...(options.revision && { revision: options.revision }) });
  const source = await open('auto', true);
  const { maxSeqLen, maxBatchSize } = options;
  const step = { ...(maxSeqLen !== undefined && { maxSeqLen }), ...(maxBatchSize !== undefined && { maxBatchSize }) };
  const record = (one: ModelSource): RecordedModel => recordSource(one, step);
  const int8 = record(source);
  const float32 = await open('float32', false);
  const dtypes = [
    describeDtype('float32', record(float32)),
    describeDtype('float16', record(await open('float16', false))),
    describeDtype('int8', int8),
  ];
  return {
    model: basename(resolve(source.folder)),
    parameters: float32.model.parameters().reduce((sum, parameter) => sum + parameter.numel, 0),
    maxSeqLen: int8.maxSeqLen,
    maxBatchSize: int8.maxBatchSize,
    dtypes,
    kvCache: describeCache(int8.program),
    setups: [...GPUS.map(({ name, GiB }) => describeGpu(name, GiB * 2 ** 30, int8)), describeCpu(int8)],
  };
}

const UNLIMITED: DeviceBudget = {
  name: 'cpu:0',
  emulated: false,
  budgetBytes: Number.MAX_SAFE_INTEGER,
  reserveBytes: 0,
};

function describeDtype(dtype: DtypeEstimate['dtype'], recorded: RecordedModel): DtypeEstimate {
  const { plan } = planRecorded(recorded, [UNLIMITED], { deviceMap: 'sequential', model: '' });
  const modules = plan.modules ?? [];
  const largest = (among: readonly PlanModule[]): DtypeEstimate['largestBlock'] =>
    among.reduce<DtypeEstimate['largestBlock']>(
      (most, { path, weightsBytes }) =>
        weightsBytes > (most?.bytes ?? 0) ? { module: path, bytes: weightsBytes } : most,
      null,
    );
  return {
    dtype,
    weightsBytes: plan.devices[0]?.weightsBytes ?? 0,
    largestBlock: largest(modules.filter(({ path }) => recorded.blockPaths.has(path))),
    largestModule: largest(modules) ?? { module: '', bytes: 0 },
  };
}

/** Elements of all caches for one token: blocks are `[blocks, kvHeads, KV_BLOCK_SIZE, headDim]`. */
function describeCache({ tensors }: Program): ModelEstimate['kvCache'] {
  const caches = tensors.filter(({ kind }) => kind === 'cache');
  const perToken = caches.reduce((sum, { dims }) => sum + elementCount(dims.slice(1) as number[]) / KV_BLOCK_SIZE, 0);
  const bytes = (dtype: DType): number => perToken * KV_TOKENS * DTYPES[dtype].bytes;
  return { tokens: KV_TOKENS, float32Bytes: bytes('float32'), float16Bytes: bytes('float16') };
}

function describeGpu(name: string, memoryBytes: number, recorded: RecordedModel): SetupEstimate {
  const offeredBytes = Math.floor(memoryBytes * OFFERED_SHARE);
  const tried = (count: number): Outcome => {
    const device = (_: unknown, i: number): DeviceBudget => ({
      ...UNLIMITED,
      name: `cuda:${i}`,
      budgetBytes: offeredBytes,
    });
    return planOver(recorded, Array.from({ length: count }, device));
  };
  let best = tried(MOST_DEVICES);
  if (best.problem !== null) return { name, memoryBytes, offeredBytes, count: null, ...best };
  // More devices never fit less: the smallest number is found by halving.
  let [tooFew, enough] = [0, MOST_DEVICES];
  while (enough - tooFew > 1) {
    const middle = Math.floor((tooFew + enough) / 2);
    const outcome = tried(middle);
    if (outcome.problem !== null) tooFew = middle;
    else [enough, best] = [middle, outcome];
  }
  return { name, memoryBytes, offeredBytes, count: enough, ...best };
}

function describeCpu(recorded: RecordedModel): SetupEstimate {
  const budgets = resolveDevices({ devices: ['cpu'] });
  const offeredBytes = budgets[0]?.budgetBytes ?? 0;
  const outcome = planOver(recorded, budgets);
  return {
    name: 'CPU of this machine (available memory)',
    memoryBytes: Math.round(offeredBytes / OFFERED_SHARE),
    offeredBytes,
    count: outcome.problem === null ? 1 : null,
    ...outcome,
  };
}

type Outcome = Pick<SetupEstimate, 'freeBytes' | 'problem'>;

/** Free bytes of the fullest device, or why the model does not fit. */
function planOver(recorded: RecordedModel, devices: readonly DeviceBudget[]): Outcome {
  try {
    const { plan } = planRecorded(recorded, devices, { deviceMap: 'balanced', model: '' });
    return { freeBytes: Math.min(...plan.devices.map(({ freeBytes }) => freeBytes)), problem: null };
  } catch (error) {
    if (!(error instanceof InsufficientMemoryError)) throw error;
    const neededBytes = Number(error.details.neededBytes ?? Number.NaN);
    return { freeBytes: null, problem: { neededBytes, message: error.message } };
  }
}
