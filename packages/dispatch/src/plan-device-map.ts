/** `planDeviceMap`: records a module tree on meta, then plans it. The planning itself is `plan-program.ts`. */
import {
  ArgumentError,
  type DimValues,
  KV_BLOCK_SIZE,
  type Program,
  type Tensor,
  type TensorSpec,
} from '@metashard/core';
import {
  ARCHITECTURES,
  type CausalLM,
  type Module,
  record,
  recordCausalLM,
  shareCommonOps,
  withBfloat16Attention,
} from '@metashard/meta';
import type { ExpectedUse } from './costs.js';
import { type DeviceBudget, type DeviceRequest, resolveDevices } from './devices.js';
import { planOrAdvise } from './does-not-fit.js';
import type { AttentionDtype, KvCacheDtype } from './options.js';
import type { Objective } from './placement.js';
import type { DeviceMap, DevicePlan, Strategy } from './plan.js';
import { type PlannedProgram, type PlanRequest, planProgram } from './plan-program.js';
import { storageOf } from './program-facts.js';

/**
 * Rows of logits computed at once when a prompt's logits are all wanted: at most these, fewer where they would take
 * more bytes than these.
 */
const LOGIT_ROWS = 64;
const LEAST_LOGIT_ROWS = 16;
const LOGIT_BYTES = 16 * 2 ** 20;
export const DEFAULT_MAX_SEQ_LEN = 2048;

export interface PlanOptions extends DeviceRequest {
  /** Default "auto". */
  deviceMap?: Strategy | DeviceMap | undefined;
  /** What `auto` minimizes. Default "latency". */
  objective?: Objective | undefined;
  /** Default: 512 prompt tokens, 128 new ones, `maxBatchSize` sequences. */
  expectedUse?: Partial<ExpectedUse> | undefined;
  /** Default 2048. */
  maxSeqLen?: number | undefined;
  /** Default 1. */
  maxBatchSize?: number | undefined;
  /** Default float32. */
  kvCacheDtype?: KvCacheDtype | undefined;
  /** Default float32. */
  attention?: AttentionDtype | undefined;
  /** For modules that are no causal LM: their forward's inputs by name, in order; "tokens" is the open size. */
  inputs?: Readonly<Record<string, InputSpec>> | undefined;
  /** Added to the architectures' own classes that are never split. */
  noSplitModuleClasses?: readonly string[] | undefined;
  /** Name in the plan. */
  model?: string | undefined;
}

export interface InputSpec {
  shape: TensorSpec['dims'];
  dtype?: TensorSpec['dtype'];
}

/** A module tree recorded for one size of step. */
export interface RecordedModel {
  program: Program;
  blockPaths: ReadonlySet<string>;
  modulePaths: ReadonlySet<string>;
  maxSeqLen: number;
  maxBatchSize: number;
  vocabSize: number | null;
}

/** Runs the module's forward once on meta. A causal LM where no `inputs` are given. */
export function recordModel(module: Module, options: PlanOptions & { vocabSize?: number } = {}): RecordedModel {
  const { maxSeqLen = DEFAULT_MAX_SEQ_LEN, maxBatchSize = 1, kvCacheDtype = 'float32', inputs } = options;
  const noSplit = new Set([...ARCHITECTURES.flatMap((one) => one.noSplit), ...(options.noSplitModuleClasses ?? [])]);
  const paths = [...module.namedModules()];
  const recorded =
    inputs === undefined
      ? recordLanguageModel(module as CausalLM, { maxSeqLen, maxBatchSize, kvCacheDtype })
      : recordInputs(module, inputs);
  const program = options.attention === 'bfloat16' ? withBfloat16Attention(recorded) : recorded;
  const logits = inputs === undefined ? program.tensors[program.outputs.logits ?? -1] : undefined;
  return {
    program,
    blockPaths: new Set(paths.filter(([, one]) => noSplit.has(one.constructor.name)).map(([path]) => path)),
    modulePaths: new Set(paths.map(([path]) => path)),
    maxSeqLen,
    maxBatchSize,
    vocabSize: (logits?.dims[1] as number | undefined) ?? null,
  };
}

function recordLanguageModel(
  model: CausalLM,
  { maxSeqLen, maxBatchSize, kvCacheDtype }: { maxSeqLen: number; maxBatchSize: number; kvCacheDtype: KvCacheDtype },
): Program {
  const blocksPerSequence = Math.ceil(maxSeqLen / KV_BLOCK_SIZE);
  const cacheBlocks = blocksPerSequence * maxBatchSize;
  return recordCausalLM(model, { blocksPerSequence, cacheBlocks, cacheDtype: kvCacheDtype });
}

/** A module of the user's: one tensor per input, in their order. */
type AnyModule = Module & { forward(...inputs: Tensor[]): Tensor };

function recordInputs(module: Module, inputs: Readonly<Record<string, InputSpec>>): Program {
  const specs = Object.fromEntries(
    Object.entries(inputs).map(([name, { shape, dtype = 'float32' }]) => [name, { dims: shape, dtype }]),
  );
  const program = shareCommonOps(
    record(module, specs, (tensors) => ({ output: (module as AnyModule).forward(...Object.values(tensors)) })),
  );
  const result = storageOf(program, program.outputs.output as number);
  if (!program.ops.some((op) => op.outputs.includes(result))) {
    throw new ArgumentError('forward: expected a result that the module computes, got an input or a weight as it is', {
      hint: 'there is nothing to run on a device: leave such a module out',
    });
  }
  return program;
}

/** The largest step: every sequence full. Logits come in passes of a few rows, unless the head is cut over devices. */
export function largestStep({ maxSeqLen, maxBatchSize, vocabSize }: RecordedModel, wholeHead: boolean): DimValues {
  const tokens = maxSeqLen * maxBatchSize;
  const fitting = Math.floor(LOGIT_BYTES / ((vocabSize ?? 1) * 4));
  const rows = Math.min(LOGIT_ROWS, Math.max(LEAST_LOGIT_ROWS, fitting));
  return {
    tokens,
    sequences: maxBatchSize,
    outputs: wholeHead ? Math.min(tokens, Math.max(rows, maxBatchSize)) : tokens,
  };
}

/** Plans a recorded model over devices with their budgets. */
export function planRecorded(
  recorded: RecordedModel,
  devices: readonly DeviceBudget[],
  rest: Pick<PlanRequest, 'deviceMap' | 'model'> &
    Partial<Pick<PlanRequest, 'skipped' | 'ignoredConfigFields' | 'costs' | 'objective' | 'expectedUse'>>,
): PlannedProgram & { dims: DimValues } {
  const plan = (dims: DimValues): PlannedProgram & { dims: DimValues } => ({
    ...planProgram({ ...recorded, ...rest, devices, dims }),
    dims,
  });
  const planned = plan(largestStep(recorded, true));
  const rowsChosenIn = planned.segments.findIndex((segment) => segment.ops.some((op) => op.op === 'select_rows'));
  const headIsWhole = rowsChosenIn < 0 || rowsChosenIn === planned.segments.length - 1;
  return headIsWhole ? planned : plan(largestStep(recorded, false));
}

/**
 * Records a module tree on meta and plans it over devices: `deviceMap` "auto" (the first device that holds everything,
 * else spread), "balanced", "balanced_low_0", "sequential", or a map by module prefix that is checked and filled in. No
 * device is opened, no weight is read.
 * Throws DeviceMapError, InsufficientMemoryError, ConfigError.
 */
export function planDeviceMap(module: Module, options: PlanOptions = {}): DevicePlan {
  const { deviceMap = 'auto', model = module.constructor.name, objective, expectedUse } = options;
  const { maxSeqLen = DEFAULT_MAX_SEQ_LEN, maxBatchSize = 1 } = options;
  const devices = resolveDevices(options);
  return planOrAdvise({ maxSeqLen, maxBatchSize }, (step) => {
    const recorded = recordModel(module, { ...options, ...step });
    return planRecorded(recorded, devices, { deviceMap, model, objective, expectedUse }).plan;
  });
}
