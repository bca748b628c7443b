/**
 * `metashard plan`: where everything would go and how many bytes that takes, before anything is loaded; as a table,
 * JSON, or a YAML that loads back.
 */
import { realpathSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import type { Command } from 'commander';
import { stringify } from 'yaml';
import type { RunConfig } from '../config/run-config.js';
import { toLoadOptions } from '../config/run-options.js';
import type { DevicePlan } from '../plan.js';
import { formatPlanTable } from '../plan-table.js';
import { type CliIo, writeText } from './cli-io.js';
import { addSettingFlags, readTarget, settingFlags } from './target.js';

interface PlanFlags extends Record<string, unknown> {
  json?: boolean;
  write?: string;
  quiet?: boolean;
}

export function definePlan(program: Command, io: CliIo): void {
  const command = program
    .command('plan')
    .summary('show where a model would go, without loading it')
    .description('Shows the device map and the bytes on every device. Reads no weights and needs none of the devices.')
    .argument('<target>', 'a YAML file, a model folder, or the id of a cached model')
    .option('--json', 'print the plan as JSON')
    .option('--write <file>', 'write a YAML with the device map that was found')
    .option('--quiet', 'print nothing but errors')
    .option('--verbose', 'show stacks of errors');
  addSettingFlags(command, { generation: false });
  command.action(async (target: string, flags: PlanFlags) => {
    const config = readTarget(target, settingFlags(flags), io.env);
    const { planModel } = await import('../load-model.js');
    const plan = await planModel(config.model, toLoadOptions(config));
    if (flags.write !== undefined) {
      writeFileSync(flags.write, planYaml(config, plan, flags.write));
      if (!flags.quiet) io.stderr.write(`wrote ${flags.write}\n`);
    }
    if (flags.json) await writeText(io.stdout, `${JSON.stringify(plan, null, 2)}\n`);
    else if (!flags.quiet && flags.write === undefined) await writeText(io.stdout, `${formatPlanTable(plan)}\n`);
  });
}

/**
 * The configuration with the plan's devices and device map in it, for `file`. Its `model` is relative to the file where
 * it is a folder.
 */
export function planYaml(config: RunConfig, plan: DevicePlan, file: string): string {
  const folder = dirname(resolve(file));
  const isFolder = statSync(config.model, { throwIfNoEntry: false })?.isDirectory() ?? false;
  const model = isFolder ? relative(folder, resolve(config.model)) || '.' : config.model;
  const { model: _, devices: _devices, device_map: _map, ...rest } = config;
  const written = { model, devices: plan.devices.map(({ name }) => name), device_map: plan.deviceMap, ...rest };
  return `# yaml-language-server: $schema=${schemaPath(folder)}\n${stringify(written)}`;
}

/**
 * The JSON Schema of the running `metashard` package as seen from a folder; where it would be once installed,
 * otherwise.
 */
function schemaPath(folder: string): string {
  const installed = join('node_modules', 'metashard', 'schema', 'metashard.schema.json');
  try {
    const schema = resolve(dirname(realpathSync(process.argv[1] ?? '')), '..', 'schema', 'metashard.schema.json');
    if (statSync(schema).isFile()) return relative(folder, schema);
  } catch {
    // Started from elsewhere, for instance from a program.
  }
  return installed;
}
