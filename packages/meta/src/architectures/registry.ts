/** The architectures metashard knows: one file and one line here each; and building a model from its config on meta. */
import { type DType, nearestWord, UnsupportedConfigError } from '@metashard/core';
import type { CausalLM } from '../causal-lm.js';
import { initEmptyWeights } from '../init-empty-weights.js';
import { bloom } from './bloom.js';
import type { ParsedConfig, RawConfig } from './config-reader.js';
import { gpt2 } from './gpt2.js';
import { llama } from './llama.js';
import { opt } from './opt.js';
import { t5 } from './t5.js';

export interface Architecture<Config extends ParsedConfig = ParsedConfig> {
  /** `model_type` in config.json. */
  readonly modelTypes: readonly string[];
  /** Throws UnsupportedConfigError naming the field that is wrong or not implemented. */
  parse(raw: RawConfig): Config;
  /** Property paths of the module tree are the checkpoint's tensor names; weights are tied as the config says. */
  build(config: Config, options: { dtype: DType }): CausalLM;
  /** Class names of modules that are never split over devices. */
  readonly noSplit: readonly string[];
  /** Path of the list of blocks. */
  readonly blocksPath: string;
  /** Checkpoints may leave this prefix out (`h.0…` for `transformer.h.0…`). */
  readonly baseModelPrefix: string;
  /** Tensors of older checkpoints that nothing uses. */
  readonly ignoredTensors: readonly RegExp[];
  /** Linears that 8 bits would harm, as `skip` of `replaceLinear` takes them. */
  readonly keepInFloat?: readonly string[];
}

export const ARCHITECTURES: readonly Architecture[] = [bloom, llama, opt, gpt2, t5] as readonly Architecture[];

/**
 * The architecture of a config.json. Throws UnsupportedConfigError for an unknown `model_type`, with the nearest known
 * one.
 */
export function findArchitecture(raw: RawConfig): Architecture {
  const found = ARCHITECTURES.find(({ modelTypes }) => modelTypes.includes(raw.model_type as string));
  if (found !== undefined) return found;
  const known = ARCHITECTURES.flatMap(({ modelTypes }) => modelTypes);
  const got = raw.model_type === undefined ? 'none' : JSON.stringify(raw.model_type);
  const near = typeof raw.model_type === 'string' ? nearestWord(raw.model_type, known) : undefined;
  throw new UnsupportedConfigError(`config.json model_type: expected ${known.join(', ')}, got ${got}`, {
    details: { field: 'model_type', value: raw.model_type },
    hint:
      near === undefined ? 'an architecture is one file in packages/meta/src/architectures' : `did you mean ${near}?`,
  });
}

export interface BuildModelOptions {
  /** Of the float weights; `auto`: as the config says. */
  dtype?: DType | 'auto';
}

export interface BuiltModel {
  model: CausalLM;
  config: ParsedConfig;
  architecture: Architecture;
}

/** The model of a config.json on meta: shapes and dtypes, no storage, no files. Throws UnsupportedConfigError. */
export function buildModel(raw: RawConfig, { dtype = 'auto' }: BuildModelOptions = {}): BuiltModel {
  const architecture = findArchitecture(raw);
  const config = architecture.parse(raw);
  const stored = dtype === 'auto' ? config.dtype : dtype;
  return { model: initEmptyWeights(() => architecture.build(config, { dtype: stored })), config, architecture };
}
