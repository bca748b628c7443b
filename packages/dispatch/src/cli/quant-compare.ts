/**
 * `metashard quant-compare`: what each quantization method costs a model on a text of the user's, which activations are
 * outliers, and which threshold to load the model with.
 */
import { ConfigError } from '@metashard/core';
import type { Command } from 'commander';
import { toLoadOptions } from '../config/run-options.js';
import type { QuantCompareOptions } from '../quant-compare/compare-quantization.js';
import { type CliIo, writeText } from './cli-io.js';
import { Interrupts, Stopped } from './interrupts.js';
import { addSettingFlags, readTarget, settingFlags } from './target.js';

interface Flags extends Record<string, unknown> {
  text: string;
  windows?: string;
  skip?: string;
  windowLength?: string;
  methods?: string;
  thresholds?: string;
  outlierReport?: string | true;
  chooseThreshold?: boolean;
  bound?: string;
  json?: boolean;
  quiet?: boolean;
}

export function defineQuantCompare(program: Command, io: CliIo): void {
  const command = program
    .command('quant-compare')
    .summary('measure what quantization costs a model on a text')
    .description(
      'Measures perplexity, next-token and last-word accuracy of a model in float and in 8 bits by several methods, on ' +
        'the CPU. The text is cut into windows; .json is a list of texts, .jsonl a text a line, whose last word is to ' +
        'be guessed.',
    )
    .argument('<target>', 'a model folder, the id of a cached model, or a YAML file')
    .requiredOption('--text <file>', 'the text: any text file, .json or .jsonl')
    .option('--windows <n>', 'windows or documents to measure; default 32')
    .option('--skip <n>', 'windows or documents to pass over first; default 0')
    .option('--window-length <tokens>', "tokens of a window; default the model's, at most 1024")
    .option('--methods <names>', 'methods, with commas; default all')
    .option('--thresholds <numbers>', 'outlier thresholds, with commas; default 6,3')
    .option('--outlier-report [threshold]', 'report which columns of activations are outliers; default from 6 on')
    .option('--choose-threshold', 'find the largest threshold whose loss stays within a bound of float')
    .option('--bound <nats>', 'what the loss may rise by with --choose-threshold; default 0.01')
    .option('--json', 'print JSON')
    .option('--quiet', 'no progress')
    .option('--verbose', 'show stacks of errors');
  addSettingFlags(command, { only: ['revision', 'dtype', 'llm_int8_skip_modules', 'threads'] });
  command.action((target: string, flags: Flags) => compareTarget(target, flags, io));
}

async function compareTarget(target: string, flags: Flags, io: CliIo): Promise<void> {
  const config = readTarget(target, settingFlags(flags), io.env);
  const { readTextFile } = await import('../quant-compare/text-windows.js');
  const { text, lastWords } = await readTextFile(flags.text);
  const interrupts = new Interrupts();
  const { signal, end } = interrupts.begin();
  const options = {
    ...toLoadOptions(config),
    windows: numberOf('--windows', flags.windows),
    skip: numberOf('--skip', flags.skip),
    windowLength: numberOf('--window-length', flags.windowLength),
    lastWords,
    signal,
    onProgress: flags.quiet || flags.json ? undefined : progressTo(io),
  };
  try {
    const report = flags.chooseThreshold
      ? await choose(config.model, text, flags, options)
      : await compare(config.model, text, flags, options);
    if (options.onProgress !== undefined) endProgress(io);
    const shown = flags.json ? JSON.stringify(report.data, null, 2) : report.print(io.stdout.columns);
    await writeText(io.stdout, `${shown}\n`);
  } catch (error) {
    throw signal.aborted ? new Stopped() : error;
  } finally {
    end();
    interrupts.dispose();
  }
}

interface Report {
  data: unknown;
  /** As tables, of a terminal's width. */
  print: (columns?: number) => string;
}

async function compare(
  model: string,
  text: string | string[],
  flags: Flags,
  options: QuantCompareOptions,
): Promise<Report> {
  const { compareQuantization } = await import('../quant-compare/compare-quantization.js');
  const { formatQuantComparison } = await import('../quant-compare/quant-report.js');
  const data = await compareQuantization(model, text, {
    ...options,
    methods: listOf(flags.methods),
    thresholds: numbersOf(flags.thresholds),
    outliersFrom: flags.outlierReport === true ? 6 : numberOf('--outlier-report', flags.outlierReport),
  });
  return { data, print: (columns) => formatQuantComparison(data, { columns }) };
}

async function choose(
  model: string,
  text: string | string[],
  flags: Flags,
  options: QuantCompareOptions,
): Promise<Report> {
  const { chooseThreshold } = await import('../quant-compare/choose-threshold.js');
  const { formatQualityTable } = await import('../quant-compare/quant-report.js');
  const data = await chooseThreshold(model, text, {
    ...options,
    candidates: numbersOf(flags.thresholds),
    bound: numberOf('--bound', flags.bound),
  });
  const print = (columns?: number): string =>
    `${formatQualityTable([data.float, ...data.measured], columns)}\n${data.summary}`;
  return { data, print };
}

/** One line that is written over, on a terminal only. */
function progressTo(io: CliIo): QuantCompareOptions['onProgress'] {
  if (io.stderr.isTTY !== true) return undefined;
  return ({ method, window, windows }) => {
    io.stderr.write(`\r\u001b[K${method}: window ${window + 1} of ${windows}`);
  };
}

function endProgress(io: CliIo): void {
  io.stderr.write('\r\u001b[K');
}

function listOf(text: string | undefined): string[] | undefined {
  return text?.split(',').map((part) => part.trim());
}

function numbersOf(text: string | undefined): number[] | undefined {
  return listOf(text)?.map((part) => numberOf('--thresholds', part) as number);
}

function numberOf(flag: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (Number.isFinite(value)) return value;
  throw new ConfigError(`${flag}: expected a number, got "${text}"`);
}
