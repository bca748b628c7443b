/**
 * Flag over environment over file over default: layers the settings of `settings.ts` onto a configuration, checked by
 * the same schema.
 */
import { canonicalDevice } from '@metashard/core';
import { type ConfigProblem, configError, configProblems, type PlacedProblem } from './config-problem.js';
import { type RunConfig, runConfigSchema } from './run-config.js';
import { environmentName, flagName, readSetting, SETTINGS, type Setting } from './settings.js';

export type Environment = Readonly<Record<string, string | undefined>>;
/**
 * Flags as a command line gives them, by `flagName`: `{ '--max-seq-len': '256', '--load-in-8bit': true, '--devices':
 * ['cpu:0,cpu:1'] }`.
 */
export type FlagValues = Readonly<Record<string, string | readonly string[] | boolean | undefined>>;

/**
 * The configuration with environment and flags over it. max_memory and generation merge by their keys, all else
 * replaces. An empty variable counts as unset. Throws ConfigError naming the variable or flag.
 */
export function mergeConfig(file: RunConfig, env: Environment, flags: FlagValues): RunConfig {
  const fromEnv = readLayer(environmentName, (name) => env[name] || undefined);
  const fromFlags = readLayer(flagName, (name) => flags[name]);
  return layOver(layOver(file, fromEnv), fromFlags);
}

type PartialConfig = Omit<Partial<RunConfig>, 'model'>;

/** One layer: the settings that `value` has, read and checked. */
function readLayer(
  nameOf: (setting: Setting) => string,
  value: (name: string) => string | readonly string[] | boolean | undefined,
): PartialConfig {
  const layer: Record<string, unknown> = {};
  const names = new Map<string, string>();
  for (const setting of SETTINGS) {
    const name = nameOf(setting);
    const given = value(name);
    if (given === undefined) continue;
    names.set(setting.path.join('.'), name);
    put(layer, setting.path, readSetting(setting, given));
  }
  const result = runConfigSchema.omit({ model: true }).safeParse(layer);
  if (result.success) return result.data;
  const problems = configProblems(result.error, layer).map((problem) => placed(problem, names));
  throw configError(problems as [PlacedProblem, ...PlacedProblem[]]);
}

function put(target: Record<string, unknown>, path: readonly string[], value: unknown): void {
  const [first, second] = path as [string, string?];
  if (second === undefined) target[first] = value;
  else target[first] = { ...(target[first] as object | undefined), [second]: value };
}

function placed(problem: ConfigProblem, names: ReadonlyMap<string, string>): PlacedProblem {
  const [first, second] = problem.path;
  const where = names.get(`${first}.${second}`) ?? names.get(String(first)) ?? String(first);
  return { ...problem, where, details: { setting: where } };
}

function layOver(below: RunConfig, above: PartialConfig): RunConfig {
  const merged: RunConfig = { ...below, ...above };
  if (below.max_memory !== undefined && above.max_memory !== undefined) {
    merged.max_memory = { ...byDevice(below.max_memory), ...byDevice(above.max_memory) };
  }
  if (below.generation !== undefined && above.generation !== undefined) {
    merged.generation = { ...below.generation, ...above.generation };
  }
  return merged;
}

function byDevice<Value>(map: Readonly<Record<string, Value>>): Record<string, Value> {
  return Object.fromEntries(Object.entries(map).map(([device, value]) => [canonicalDevice(device), value]));
}
