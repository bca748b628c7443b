/** `loadModel`: the sentence of the design, step by step. Each step is a file of its name. */
import { basename, resolve } from 'node:path';
import {
  ArgumentError,
  CheckpointError,
  type CheckpointIndex,
  ConfigError,
  type DeviceName,
  ensureBackend,
  native,
  type ProgramTensor,
  parseDevice,
  type TensorId,
} from '@metashard/core';
import { findTiedParameters, findTransposedParameters, type ParsedConfig } from '@metashard/meta';
import type { Piscina } from 'piscina';
import { chooseLoadThreshold } from './auto-threshold.js';
import { costsOf, readCalibration } from './calibrate.js';
import { resolveDevices } from './devices.js';
import { planOrAdvise } from './does-not-fit.js';
import type { LoadInstruction } from './executor-protocol.js';
import { Executors, endThread, type MappedStore, startThread } from './executors.js';
import { findStore, type StoreRequest, storedSources, writeStore } from './find-store.js';
import { readGenerationConfig } from './generation-config.js';
import { LoadedModel } from './loaded-model.js';
import { weightsToLoad } from './memory-plan.js';
import { type ModelSource, openModelSource } from './model-source.js';
import type { LoadModelOptions, LoadProgress } from './options.js';
import type { PackProgress } from './pack-model.js';
import { storeFolder } from './packed-store.js';
import type { DevicePlan } from './plan.js';
import { DEFAULT_MAX_SEQ_LEN, planRecorded, type RecordedModel, recordModel } from './plan-device-map.js';
import type { PlannedProgram } from './plan-program.js';
import { tensorBytes } from './program-facts.js';
import { loadTokenizer } from './tokenizer.js';
import { findWeightSources, instructionsFor } from './weight-sources.js';

/**
 * Loads a model from a folder or the local Hugging Face cache, in 8 bits if asked, over all devices of its plan. The plan is checked before any weight is read;
 * on any failure (or abort) nothing stays behind. Throws ModelNotFoundError, UnsupportedConfigError, CheckpointError, DeviceMapError, InsufficientMemoryError,
 * DeviceUnavailableError, OutOfMemoryError, and the signal's reason.
 */
export async function loadModel(nameOrFolder: string, options: LoadModelOptions = {}): Promise<LoadedModel> {
  options.signal?.throwIfAborted();
  if (options.llmInt8Threshold === 'auto') return loadMeasured(nameOrFolder, options);
  const thread = startThread(); // takes as long as planning does
  try {
    return await loadThrough(thread, nameOrFolder, options);
  } catch (error) {
    await endThread(thread);
    throw error;
  }
}

async function loadThrough(thread: Piscina, nameOrFolder: string, options: LoadModelOptions): Promise<LoadedModel> {
  const { signal } = options;
  const source = await openModelSource(nameOrFolder, options);
  const { checkpoint } = source;
  if (checkpoint === null) {
    throw new CheckpointError(`${source.folder}: expected weights, got a config alone`, {
      hint: 'a config can be planned: metashard plan',
    });
  }
  const { recorded, planned } = recordAndPlan(source, options);
  const sources = sourcesOf(source, checkpoint, recorded, options);
  const tokenizer = await loadTokenizer(source.folder);
  const generationDefaults = readGenerationConfig(source.folder, tokenIds(source.config));
  applyThreads(options);
  signal?.throwIfAborted();
  const { vocabSize, maxSeqLen, maxBatchSize } = recorded;
  const sampler = vocabSize === null ? null : { sequences: maxBatchSize, maxSeqLen, vocabSize };
  const store = await storeFor(options, streamsFromDisk(planned), {
    program: recorded.program,
    checkpoint,
    sources,
    offloadFolder: options.offloadFolder,
  });
  const { program } = recorded;
  const executors = await Executors.start({ program, planned, dims: planned.dims, sampler, store, thread });
  try {
    const from = store === null ? sources : storedSources(store);
    const perDevice = new Map(
      [...planned.memory].map(([device, memory]) => [
        device,
        usesInPlace(device, store) ? [] : instructionsFor(weightsToLoad(memory), from),
      ]),
    );
    await executors.load(perDevice, reportProgress(recorded, planned, options), signal);
  } catch (error) {
    await executors.dispose();
    throw error;
  }
  options.logger?.info(`loaded ${planned.plan.model} over ${[...planned.memory.keys()].join(', ')}`);
  return new LoadedModel({ source, recorded, planned, executors, tokenizer, generationDefaults });
}

/** What does not fit is refused before anything is measured. */
async function loadMeasured(nameOrFolder: string, options: LoadModelOptions): Promise<LoadedModel> {
  await planModel(nameOrFolder, options);
  const choice = await chooseLoadThreshold(nameOrFolder, options);
  options.logger?.info(`llm_int8_threshold: auto: ${choice.summary}`);
  const { llmInt8ThresholdText: _, ...rest } = options;
  const model = await loadModel(nameOrFolder, { ...rest, llmInt8Threshold: choice.threshold });
  model.thresholdChoice = choice;
  return model;
}

export interface PackOptions {
  /** Do not write one; throw if there is none. Default false. */
  mustExist?: boolean;
  onProgress?: (progress: PackProgress) => void;
}

/** Writes the packed store that `loadModel` would use with these options, if it is not there; returns its file. Throws what loading does. */
export async function packStore(
  nameOrFolder: string,
  options: LoadModelOptions = {},
  { mustExist = false, onProgress }: PackOptions = {},
): Promise<string> {
  const source = await openModelSource(nameOrFolder, options);
  const { checkpoint } = source;
  if (checkpoint === null) throw new CheckpointError(`${source.folder}: expected weights, got a config alone`);
  const recorded = recordSource(source, options);
  const sources = sourcesOf(source, checkpoint, recorded, options);
  const request = { program: recorded.program, checkpoint, sources, offloadFolder: options.offloadFolder };
  const found = findStore(request);
  if (found !== null) return found.file;
  if (mustExist)
    throw new CheckpointError(
      `${source.folder}: expected a packed store in ${storeFolder(options.offloadFolder)}, got none`,
      { hint: 'metashard pack writes it' },
    );
  return (await writeStore(request, { onProgress, signal: options.signal })).file;
}

function sourcesOf(
  source: ModelSource,
  checkpoint: CheckpointIndex,
  recorded: RecordedModel,
  { strict = true, logger }: LoadModelOptions,
): Map<TensorId, LoadInstruction> {
  return findWeightSources({
    strict,
    warn: (message) => logger?.warn(message),
    program: recorded.program,
    checkpoint,
    baseModelPrefix: source.architecture.baseModelPrefix,
    tied: findTiedParameters(source.model),
    transposed: findTransposedParameters(source.model),
    ignore: source.architecture.ignoredTensors,
  });
}

/** The plan `loadModel` would follow; a folder with a config alone is enough. Throws what planning throws. */
export async function planModel(nameOrFolder: string, options: LoadModelOptions = {}): Promise<DevicePlan> {
  return recordAndPlan(await openModelSource(nameOrFolder, options), options).planned.plan;
}

/** The packed store to load from: one that is there, or one written now if asked or needed for streaming; null: load from the checkpoint. */
async function storeFor(
  { packedStore = 'use', signal, logger }: LoadModelOptions,
  streams: boolean,
  request: StoreRequest,
): Promise<MappedStore | null> {
  if (packedStore === 'ignore' && !streams) return null;
  const found = findStore(request);
  if (found !== null || (packedStore !== 'write' && !streams)) return found;
  const written = await writeStore(request, { signal });
  logger?.info(`packed into ${written.file}`);
  return written;
}

function streamsFromDisk({ memory }: PlannedProgram): boolean {
  return [...memory.values()].some(({ portions }) => portions.some(({ from }) => from === 'disk'));
}

function usesInPlace(device: DeviceName, store: MappedStore | null): boolean {
  return store !== null && parseDevice(device).type === 'cpu';
}

/** Records the model of a source for the options' size of step. Throws ConfigError, ArgumentError. */
export function recordSource(source: ModelSource, options: LoadModelOptions): RecordedModel {
  const own = source.config.maxPositionEmbeddings;
  const maxSeqLen = options.maxSeqLen ?? Math.min(own ?? DEFAULT_MAX_SEQ_LEN, DEFAULT_MAX_SEQ_LEN);
  const maxBatchSize = options.maxBatchSize ?? 1;
  for (const [name, value] of Object.entries({ maxSeqLen, maxBatchSize })) {
    if (!Number.isInteger(value) || value < 1)
      throw new ArgumentError(`${name}: expected a whole number of at least 1, got ${value}`);
  }
  if (own !== null && maxSeqLen > own) {
    throw new ConfigError(`max_seq_len: expected at most the model's ${own}, got ${maxSeqLen}`);
  }
  const { kvCacheDtype, attention } = options;
  return recordModel(source.model, { maxSeqLen, maxBatchSize, kvCacheDtype, attention });
}

/** What does not fit is refused with what would. */
function recordAndPlan(source: ModelSource, options: LoadModelOptions) {
  const recorded = recordSource(source, options);
  const { maxSeqLen, maxBatchSize } = recorded;
  return planOrAdvise({ maxSeqLen, maxBatchSize }, (step) => {
    const isAsked = step.maxSeqLen === maxSeqLen && step.maxBatchSize === maxBatchSize;
    const sized = isAsked ? recorded : recordSource(source, { ...options, ...step });
    return { recorded: sized, planned: planSource(source, sized, options) };
  });
}

/** Plans a recorded source over the options' devices. */
export function planSource(source: ModelSource, recorded: RecordedModel, options: LoadModelOptions) {
  return planRecorded(recorded, resolveDevices(options), {
    deviceMap: options.deviceMap ?? 'auto',
    objective: options.objective,
    expectedUse: options.expectedUse,
    model: basename(resolve(source.folder)),
    costs: costsOf(readCalibration(storeFolder(options.offloadFolder))),
    skipped: source.skipped,
    ignoredConfigFields: [...source.config.ignoredFields],
  });
}

function tokenIds({ bosTokenId, eosTokenIds, padTokenId }: ParsedConfig) {
  return { bosTokenId, eosTokenId: eosTokenIds, padTokenId };
}

function applyThreads({ threads }: LoadModelOptions): void {
  if (threads === undefined) return;
  if (!Number.isInteger(threads) || threads < 1)
    throw new ArgumentError(`threads: expected a whole number of at least 1, got ${threads}`);
  ensureBackend('cpu');
  native().configureBackend('cpu', 'threads', String(threads));
}

function reportProgress(
  recorded: RecordedModel,
  planned: PlannedProgram & { dims: Parameters<typeof tensorBytes>[1] },
  { onProgress }: LoadModelOptions,
) {
  const totals = new Map<DeviceName, number>();
  const loaded = new Map<DeviceName, number>();
  const sizes = new Map<string, number>();
  for (const tensor of recorded.program.tensors as readonly ProgramTensor[]) {
    if (tensor.kind === 'weight') sizes.set(tensor.name ?? '', tensorBytes(tensor, planned.dims));
  }
  for (const [device, memory] of planned.memory) {
    let total = 0;
    for (const id of weightsToLoad(memory))
      total += tensorBytes(recorded.program.tensors[id] as ProgramTensor, planned.dims);
    totals.set(device, total);
  }
  const sum = (values: Iterable<number>): number => [...values].reduce((a, b) => a + b, 0);
  const started = performance.now();
  return (device: DeviceName, tensor: string): void => {
    const scales = sizes.get(tensor.replace(/(^|\.)weight$/, '$1SCB'));
    loaded.set(device, (loaded.get(device) ?? 0) + (sizes.get(tensor) ?? 0) + (scales ?? 0));
    const [allLoadedBytes, allTotalBytes] = [sum(loaded.values()), sum(totals.values())];
    const elapsedMs = performance.now() - started;
    onProgress?.({
      device,
      tensor,
      loadedBytes: loaded.get(device) ?? 0,
      totalBytes: totals.get(device) ?? 0,
      allLoadedBytes,
      allTotalBytes,
      elapsedMs,
      remainingMs: (elapsedMs * (allTotalBytes - allLoadedBytes)) / Math.max(1, allLoadedBytes),
    } satisfies LoadProgress);
  };
}
