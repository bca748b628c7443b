/**
 * `metashard plan`: where everything would go and how many bytes that takes, before anything is loaded; as a table,
 * JSON, a picture, or a YAML that loads back; and what would be with other devices, contexts and batch sizes.
 */
import { realpathSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { ConfigError, formatBytes } from '@metashard/core';
import type { Command } from 'commander';
import { stringify } from 'yaml';
import type { RunConfig } from '../config/run-config.js';
import { toLoadOptions } from '../config/run-options.js';
import { drawTable } from '../draw-table.js';
import type { DevicePlan } from '../plan.js';
import { planHtml } from '../plan-page.js';
import { planSvg } from '../plan-picture.js';
import { formatMs, formatPlanTable } from '../plan-table.js';
import type { WhatIfRow } from '../what-if.js';
import { type CliIo, writeText } from './cli-io.js';
import { addSettingFlags, readTarget, settingFlags } from './target.js';

interface PlanFlags extends Record<string, unknown> {
  json?: boolean;
  write?: string;
  svg?: string;
  html?: string;
  whatIf?: string[];
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
    .option('--svg <file>', 'draw a picture: a row of blocks per device')
    .option('--html <file>', 'write a page with the picture and every byte')
    .option('--what-if <axis=values>', `try devices, max_seq_len or max_batch_size: devices=1,2,4 (repeatable)`, append)
    .option('--quiet', 'print nothing but errors')
    .option('--verbose', 'show stacks of errors');
  addSettingFlags(command, { generation: false });
  command.action(async (target: string, flags: PlanFlags) => {
    const config = readTarget(target, settingFlags(flags), io.env);
    if (flags.whatIf !== undefined) await printWhatIf(config, flags.whatIf, flags, io);
    else await printPlan(config, flags, io);
  });
}

function append(value: string, all: string[] = []): string[] {
  return [...all, value];
}

async function printPlan(config: RunConfig, flags: PlanFlags, io: CliIo): Promise<void> {
  const { planModel } = await import('../load-model.js');
  const plan = await planModel(config.model, toLoadOptions(config));
  const files: [string | undefined, (file: string) => string][] = [
    [flags.write, (file) => planYaml(config, plan, file)],
    [flags.svg, () => planSvg(plan)],
    [flags.html, () => planHtml(plan)],
  ];
  for (const [file, make] of files) {
    if (file === undefined) continue;
    writeOutput(file, make(file));
    if (!flags.quiet) io.stderr.write(`wrote ${file}\n`);
  }
  const isWritten = files.some(([file]) => file !== undefined);
  if (flags.json) await writeText(io.stdout, `${JSON.stringify(plan, null, 2)}\n`);
  else if (!flags.quiet && !isWritten) await writeText(io.stdout, `${formatPlanTable(plan, io.stdout)}\n`);
}

function writeOutput(file: string, text: string): void {
  try {
    writeFileSync(file, text);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw new ConfigError(`${file}: expected a file that can be written, got ${code}`, { cause, details: { file } });
  }
}

async function printWhatIf(config: RunConfig, texts: readonly string[], flags: PlanFlags, io: CliIo): Promise<void> {
  const other = (['write', 'svg', 'html'] as const).find((name) => flags[name] !== undefined);
  if (other !== undefined) throw new ConfigError(`--${other}: expected one plan, got --what-if with many`);
  const { readWhatIf, whatIf } = await import('../what-if.js');
  const tried = await whatIf(config.model, toLoadOptions(config), readWhatIf(texts));
  if (flags.json) await writeText(io.stdout, `${JSON.stringify(tried, null, 2)}\n`);
  else await writeText(io.stdout, `${formatWhatIf(tried.rows, io.stdout)}\n`);
}

/** A row per combination; `free` is the fullest device's, negative where memory is missing. */
export function formatWhatIf(rows: readonly WhatIfRow[], { columns }: { columns?: number | undefined } = {}): string {
  const costs = rows.find((row) => row.costs !== null)?.costs ?? 'datasheet';
  const lines = rows.map(({ devices, maxSeqLen, maxBatchSize, fits, tightest, offloadedBytes, expectedMs }) => [
    ...[devices, maxSeqLen, maxBatchSize].map(String),
    fits ? (offloadedBytes > 0 ? `with ${formatBytes(offloadedBytes)} on disk` : 'yes') : 'no',
    tightest?.device ?? '–',
    ...(tightest === null
      ? ['–', '–']
      : [tightest.neededBytes, tightest.availableBytes - tightest.neededBytes].map(formatBytes)),
    expectedMs === null ? '–' : formatMs(expectedMs),
  ]);
  const header = [
    'devices',
    'max_seq_len',
    'max_batch_size',
    'fits',
    'tightest',
    'needs',
    'free',
    `a token (${costs})`,
  ];
  const problems = new Set(
    rows.flatMap(({ problem, tightest }) => (problem !== null && tightest === null ? [problem] : [])),
  );
  return [drawTable(header, lines, { leftColumns: 0, columns }), ...problems].join('\n');
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
