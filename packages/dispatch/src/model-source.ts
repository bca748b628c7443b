/**
 * What a folder says about a model before any weight is read: its config, the module tree on meta, which linears are in
 * 8 bits.
 */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  CheckpointError,
  type CheckpointIndex,
  ConfigError,
  ModelNotFoundError,
  openCheckpoint,
  UnsupportedConfigError,
} from '@metashard/core';
import {
  type BuiltModel,
  buildModel,
  findTiedParameters,
  type Int8Activations,
  Linear8bitLt,
  nn,
  type RawConfig,
  replaceLinear,
} from '@metashard/meta';
import { checkAutoThreshold } from './auto-threshold.js';
import type { LoadModelOptions } from './options.js';
import type { DevicePlan } from './plan.js';
import { resolveModel } from './resolve-model.js';

export interface ModelSource extends BuiltModel {
  folder: string;
  /** null: the folder holds no weights (a config alone can be planned). */
  checkpoint: CheckpointIndex | null;
  /** Linears left in float although the model is in 8 bits, and why. */
  skipped: DevicePlan['skipped'];
}

const DEFAULT_THRESHOLD = 6.0;

/** Finds, reads and builds on meta. Throws ModelNotFoundError, CheckpointError, UnsupportedConfigError. */
export async function openModelSource(nameOrFolder: string, options: LoadModelOptions): Promise<ModelSource> {
  const folder = resolveModel(nameOrFolder, options.revision === undefined ? {} : { revision: options.revision });
  const raw = await readConfig(folder);
  const checkpoint = await openWeights(folder);
  const saved = savedQuantization(raw);
  const tied = saved?.head === 'tied' ? { tie_word_embeddings: true } : {};
  const built = buildModel({ ...raw, ...tied }, { dtype: options.dtype ?? 'auto' });
  return { ...built, folder, checkpoint, skipped: quantizeLinears(built, saved, checkpoint, options) };
}

async function readConfig(folder: string): Promise<RawConfig> {
  const file = join(folder, 'config.json');
  if (!existsSync(file)) {
    throw new ModelNotFoundError(`${folder}: expected a config.json, got none`, {
      hint: 'give the folder that holds config.json and the safetensors files',
    });
  }
  try {
    const parsed: unknown = JSON.parse(await readFile(file, 'utf8'));
    if (typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed)) return parsed as RawConfig;
  } catch (cause) {
    throw new CheckpointError(`${file}: expected JSON, got ${(cause as Error).message}`, { cause, details: { file } });
  }
  throw new CheckpointError(`${file}: expected a JSON object`, { details: { file } });
}

async function openWeights(folder: string): Promise<CheckpointIndex | null> {
  try {
    return await openCheckpoint(folder);
  } catch (error) {
    if (error instanceof CheckpointError && error.code === 'checkpoint_missing') return null;
    throw error;
  }
}

/** Replaces linears as the options and the checkpoint say: a checkpoint in 8 bits decides by the presence of SCB. */
function quantizeLinears(
  { model, architecture }: BuiltModel,
  saved: SavedQuantization | null,
  checkpoint: CheckpointIndex | null,
  options: LoadModelOptions,
): DevicePlan['skipped'] {
  const isInt8 = options.loadIn8bit ?? saved !== null;
  const activations = options.int8Activations ?? saved?.activations ?? 'int8';
  checkAutoThreshold(options, { isInt8, activations });
  if (!isInt8) {
    if (options.llmInt8Head !== true) return [];
    throw new ConfigError('llm_int8_head: expected load_in_8bit: true beside it, got a float model');
  }
  const hasScales = scalesIn(saved === null ? null : checkpoint, model, architecture.baseModelPrefix);
  const keep: string[] = [];
  let head = options.llmInt8Head;
  for (const [path, module] of model.namedModules()) {
    if (hasScales === null || !(module instanceof nn.Linear) || module instanceof Linear8bitLt) continue;
    if (/(^|\.)lm_head$/.test(path)) head ??= hasScales(path);
    else if (!hasScales(path)) keep.push(path);
  }
  const asked = options.llmInt8Threshold === 'auto' ? undefined : options.llmInt8Threshold;
  const { skipped } = replaceLinear(model, {
    // What is measured later changes no byte of a plan.
    threshold: asked ?? saved?.threshold ?? DEFAULT_THRESHOLD,
    skip: [...(architecture.keepInFloat ?? []), ...(options.llmInt8SkipModules ?? []), ...keep],
    hasFp16Weights: false,
    outliers: options.outliers ?? saved?.outliers ?? 'per-batch',
    activations,
    head: head ?? false,
  });
  return skipped.map(({ name, reason }) => ({ module: name, reason }));
}

/** Whether an 8-bit checkpoint has scales of a linear, under any name its weight has; null for a float one. */
function scalesIn(
  checkpoint: CheckpointIndex | null,
  model: BuiltModel['model'],
  prefix: string,
): ((path: string) => boolean) | null {
  if (checkpoint === null) return null;
  const tied = findTiedParameters(model);
  return (path) => {
    const weight = `${path}.weight`;
    const names = tied.find((group) => group.includes(weight)) ?? [weight];
    return names
      .map((name) => name.replace(/weight$/, 'SCB'))
      .flatMap((name) => [name, name.startsWith(`${prefix}.`) ? name.slice(prefix.length + 1) : `${prefix}.${name}`])
      .some((name) => checkpoint.tensors.has(name));
  };
}

interface SavedQuantization {
  threshold: number;
  activations: Int8Activations | undefined;
  outliers: 'per-batch' | 'per-row' | undefined;
  /** "tied": the embeddings' float table stands for the head's 8-bit one. */
  head: unknown;
}

/**
 * quantization_config of a checkpoint that was saved in 8 bits, by transformers or by us (`int8_activations`,
 * `outliers`, `llm_int8_head`); null for a float one. Throws UnsupportedConfigError for other quantizations.
 */
function savedQuantization(raw: RawConfig): SavedQuantization | null {
  const config = raw.quantization_config as Record<string, unknown> | undefined | null;
  if (config === undefined || config === null) return null;
  if (config.load_in_8bit === true && config.load_in_4bit !== true) {
    const threshold = config.llm_int8_threshold;
    return {
      threshold: typeof threshold === 'number' ? threshold : DEFAULT_THRESHOLD,
      activations: oneOf(config, 'int8_activations', ['int8', 'float', 'bfloat16']),
      outliers: oneOf(config, 'outliers', ['per-batch', 'per-row']),
      head: config.llm_int8_head,
    };
  }
  throw new UnsupportedConfigError(
    `config.json quantization_config: expected load_in_8bit, got ${JSON.stringify(config.quant_method ?? config)}`,
    {
      hint: 'metashard reads float checkpoints and those saved in 8 bits by bitsandbytes',
      details: { field: 'quantization_config' },
    },
  );
}

function oneOf<const Word extends string>(
  config: Readonly<Record<string, unknown>>,
  key: string,
  words: readonly Word[],
): Word | undefined {
  const value = config[key];
  if (value === undefined) return undefined;
  const word = words.find((one) => one === value);
  if (word !== undefined) return word;
  const field = `quantization_config.${key}`;
  throw new UnsupportedConfigError(
    `config.json ${field}: expected one of ${words.join(', ')}, got ${JSON.stringify(value)}`,
    { details: { field } },
  );
}
