/**
 * `metashard bench`: what a model reaches on this machine, and the share of what its devices could: prefill and
 * decoding in tokens a second, memory. With --json one object.
 */
import { ArgumentError, formatBytes } from '@metashard/core';
import type { Command } from 'commander';
import type { BenchRow } from '../bench-model.js';
import type { CostModel } from '../costs.js';
import { drawTable } from '../draw-table.js';
import type { LoadedModel } from '../loaded-model.js';
import { type CliIo, writeText } from './cli-io.js';
import { type LoadFlags, withTarget } from './load-target.js';
import { addSettingFlags, readTarget, settingFlags } from './target.js';

type BenchFlags = LoadFlags &
  Record<string, unknown> & {
    promptTokens?: string;
    newTokens?: string;
    batches?: string;
    repetitions?: string;
  };

export function defineBench(program: Command, io: CliIo): void {
  const command = program
    .command('bench')
    .summary('time prefill and decoding of a model, beside what the devices could do')
    .description(
      'Loads a model as `run` does and times it over random token ids: a prefill, then decoding of one sequence and of ' +
        'several at once. Shares of the floor rest on `metashard calibrate`, which runs first where it never did.',
    )
    .argument('<target>', 'a YAML file, a model folder, or the id of a cached model')
    .option('--prompt-tokens <n>', 'tokens of the prefill; default 512')
    .option('--new-tokens <n>', 'tokens to decode; default 64')
    .option('--batches <numbers>', 'sequences decoded at once, with commas; default 1,8')
    .option('--repetitions <n>', 'runs of each row, of which the median counts; default 3')
    .option('--json', 'print one JSON object')
    .option('--quiet', 'print the result and errors only')
    .option('--verbose', 'say more, and show stacks of errors');
  addSettingFlags(command, { generation: false });
  command.action((target: string, flags: BenchFlags) => benchTarget(target, flags, io));
}

async function benchTarget(target: string, flags: BenchFlags, io: CliIo): Promise<void> {
  const config = readTarget(target, settingFlags(flags), io.env);
  const batches = (flags.batches ?? '1,8').split(',').map((part) => count('--batches', part));
  const options = {
    promptTokens: count('--prompt-tokens', flags.promptTokens ?? '512'),
    newTokens: count('--new-tokens', flags.newTokens ?? '64'),
    repetitions: count('--repetitions', flags.repetitions ?? '3'),
    batches,
    costs: await machineCosts(flags, io),
  };
  const largest = { ...config, max_batch_size: Math.max(config.max_batch_size ?? 1, ...batches) };
  await withTarget(largest, flags, io, async ({ model, signal, loadMs }) => {
    const { benchModel } = await import('../bench-model.js');
    const rows = await benchModel(model, { ...options, signal });
    await report(model, rows, { model: config.model, costs: options.costs.source, loadMs }, flags, io);
  });
}

/** Measured once per machine; before the model is loaded, as devices must be free. */
async function machineCosts({ quiet, json }: BenchFlags, io: CliIo): Promise<CostModel> {
  const { calibrate, costsOf, readCalibration } = await import('../calibrate.js');
  const known = readCalibration();
  if (known === null && !quiet && !json) io.stderr.write('measuring this machine once, some seconds\n');
  return costsOf(known ?? calibrate());
}

interface Facts {
  model: string;
  costs: CostModel['source'];
  loadMs: number;
}

async function report(
  model: LoadedModel,
  rows: readonly BenchRow[],
  facts: Facts,
  flags: BenchFlags,
  io: CliIo,
): Promise<void> {
  const devices = await model.stats();
  const processPeakBytes = process.resourceUsage().maxRSS * 1024;
  if (flags.json) {
    return writeText(io.stdout, `${JSON.stringify({ ...facts, rows, devices, processPeakBytes }, null, 2)}\n`);
  }
  const peaks = devices.map(
    ({ device, peakBytes, plannedBytes }) =>
      `${device} ${formatBytes(peakBytes)} (planned ${formatBytes(plannedBytes)})`,
  );
  const lines = [
    drawTable(['run', 'tokens/s', 'ms a step', 'reads', 'of the floor'], rows.map(tableRow), {
      leftColumns: 1,
      columns: io.stdout.columns,
    }),
    `loaded in ${(facts.loadMs / 1e3).toFixed(2)} s; peak memory: ${peaks.join(', ')}, process ${formatBytes(processPeakBytes)}`,
  ];
  await writeText(io.stdout, `${lines.join('\n')}\n`);
}

/** A prefill is bound by operations: its bytes say nothing. */
function tableRow({ phase, sequences, tokens, ms, tokensPerSecond, bytesPerSecond, floorMs }: BenchRow): string[] {
  const isPrefill = phase === 'prefill';
  const steps = isPrefill ? 1 : tokens / sequences;
  return [
    isPrefill ? `prefill, ${tokens} tokens` : `decode, ${sequences} ${sequences === 1 ? 'sequence' : 'sequences'}`,
    tokensPerSecond.toFixed(1),
    (ms / steps).toFixed(1),
    isPrefill ? '–' : `${(bytesPerSecond / 1e9).toFixed(1)} GB/s`,
    `${((100 * floorMs) / ms).toFixed(0)} %`,
  ];
}

function count(flag: string, text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new ArgumentError(`${flag}: expected a whole number from 1 up, got "${text.trim()}"`);
}
