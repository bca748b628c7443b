/**
 * The arguments and flags that run, plan and estimate share: TARGET (a YAML file, a folder or a cached id) and the
 * settings of `config/settings.ts`.
 */
import { statSync } from 'node:fs';
import { type Command, Option } from 'commander';
import { loadConfig } from '../config/load-config.js';
import { type FlagValues, mergeConfig } from '../config/merge-config.js';
import type { RunConfig } from '../config/run-config.js';
import { flagName, SETTINGS, type Setting, settingHelp } from '../config/settings.js';

const REPEATABLE = new Set(['list', 'sizes', 'texts']);

/**
 * Adds the flags of all settings, of those outside `generation`, or of some keys only. Flags that are true or false
 * also have a --no- form.
 */
export function addSettingFlags(
  command: Command,
  { generation = false, only }: { generation?: boolean; only?: readonly string[] },
): void {
  for (const setting of SETTINGS) {
    if (!generation && setting.path[0] === 'generation') continue;
    if (only !== undefined && !only.includes(setting.path.join('.'))) continue;
    const name = flagName(setting);
    if (setting.kind === 'flag') {
      command.addOption(new Option(name, settingHelp(setting)));
      command.addOption(new Option(name.replace('--', '--no-'), 'the opposite').hideHelp());
      continue;
    }
    const option = new Option(`${name} <${setting.value}>`, settingHelp(setting));
    if (REPEATABLE.has(setting.kind)) option.argParser((value: string, all: string[] = []) => [...all, value]);
    command.addOption(option);
  }
}

/** The settings given as flags, by flag name. */
export function settingFlags(options: Readonly<Record<string, unknown>>): FlagValues {
  const given = SETTINGS.map((setting) => [flagName(setting), options[attributeOf(setting)]] as const);
  return Object.fromEntries(given.filter(([, value]) => value !== undefined)) as FlagValues;
}

function attributeOf(setting: Setting): string {
  return new Option(flagName(setting)).attributeName();
}

/** Configuration of a TARGET with environment and flags over it. Throws ConfigError. */
export function readTarget(target: string, flags: FlagValues, env: NodeJS.ProcessEnv): RunConfig {
  return mergeConfig(isConfigFile(target) ? loadConfig(target) : { model: target }, env, flags);
}

function isConfigFile(target: string): boolean {
  return /\.ya?ml$/i.test(target) || (statSync(target, { throwIfNoEntry: false })?.isFile() ?? false);
}
