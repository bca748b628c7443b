/**
 * From a RunConfig (snake_case, as in YAML) to the options of loadModel and generate (camelCase). Renames only;
 * defaults are applied where used.
 */
import { canonicalDevice } from '@metashard/core';
import type { GenerateOptions, LoadModelOptions } from '../options.js';
import type { DeviceMap, DeviceMapValue, Strategy } from '../plan.js';
import type { RunConfig } from './run-config.js';

/** Options of loadModel and planModel; device names are canonical (`1` is cuda:1, `cpu` is cpu:0). */
export function toLoadOptions(config: RunConfig): LoadModelOptions {
  return withoutUndefined<LoadModelOptions>({
    deviceMap: config.device_map === undefined ? undefined : toDeviceMap(config.device_map),
    objective: config.objective,
    expectedUse: toExpectedUse(config),
    devices: config.devices?.map((device) => canonicalDevice(device)),
    maxMemory: config.max_memory === undefined ? undefined : mapKeys(config.max_memory, canonicalDevice),
    dtype: config.dtype,
    loadIn8bit: config.load_in_8bit,
    llmInt8Threshold: config.llm_int8_threshold,
    llmInt8ThresholdText: config.llm_int8_threshold_text,
    llmInt8SkipModules: config.llm_int8_skip_modules,
    llmInt8Head: config.llm_int8_head,
    int8Activations: config.int8_activations,
    outliers: config.outliers,
    attention: config.attention,
    kvCacheDtype: config.kv_cache_dtype,
    maxSeqLen: config.max_seq_len,
    maxBatchSize: config.max_batch_size,
    threads: config.threads,
    reserve: config.reserve,
    offloadFolder: config.offload_folder,
    revision: config.revision,
  });
}

function toExpectedUse(config: RunConfig): LoadModelOptions['expectedUse'] {
  const use = withoutUndefined<NonNullable<LoadModelOptions['expectedUse']>>({
    promptTokens: config.expected_prompt_tokens,
    newTokens: config.expected_new_tokens,
    sequences: config.expected_sequences,
  });
  return Object.keys(use).length === 0 ? undefined : use;
}

export function toGenerateOptions({ generation = {} }: Pick<RunConfig, 'generation'>): GenerateOptions {
  return withoutUndefined<GenerateOptions>({
    maxNewTokens: generation.max_new_tokens,
    doSample: generation.do_sample,
    temperature: generation.temperature,
    topK: generation.top_k,
    topP: generation.top_p,
    repetitionPenalty: generation.repetition_penalty,
    seed: generation.seed,
    stop: generation.stop,
    ignoreEos: generation.ignore_eos,
  });
}

function toDeviceMap(map: NonNullable<RunConfig['device_map']>): Strategy | DeviceMap {
  if (typeof map === 'string') return map;
  return Object.fromEntries(Object.entries(map).map(([prefix, value]) => [prefix, toPlacement(value)]));
}

function toPlacement(value: Exclude<NonNullable<RunConfig['device_map']>, string>[string]): DeviceMapValue {
  if (typeof value !== 'object') return canonicalDevice(value);
  const device = canonicalDevice(value.device);
  return value.execute_on === undefined ? { device } : { device, execute_on: canonicalDevice(value.execute_on) };
}

function mapKeys<Value>(map: Readonly<Record<string, Value>>, rename: (key: string) => string): Record<string, Value> {
  return Object.fromEntries(Object.entries(map).map(([key, value]) => [rename(key), value]));
}

/** Options without the keys that nobody set: absent and undefined differ under exactOptionalPropertyTypes. */
function withoutUndefined<Options extends object>(
  options: { [Key in keyof Options]?: Options[Key] | undefined },
): Options {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Options;
}
