/**
 * `metashard run`: loads a model over its devices and continues a prompt, token by token. The text goes to standard
 * output; the plan, load progress and closing lines (tokens/s, time to first token, peak memory) to standard error.
 * With --json one object at the end instead of text.
 */

import { ArgumentError, ConfigError, formatBytes } from '@metashard/core';
import type { Command } from 'commander';
import type { RunConfig } from '../config/run-config.js';
import { toGenerateOptions } from '../config/run-options.js';
import type { DeviceStats, LoadedModel } from '../loaded-model.js';
import type { Prompt } from '../options.js';
import { runChat } from './chat.js';
import { type CliIo, colorsFor, readAll, writeText } from './cli-io.js';
import type { Interrupts } from './interrupts.js';
import { type LoadFlags, withTarget } from './load-target.js';
import { addSettingFlags, readTarget, settingFlags } from './target.js';

type RunFlags = LoadFlags & Record<string, unknown>;

export function defineRun(program: Command, io: CliIo): void {
  const command = program
    .command('run')
    .summary('continue a prompt, or chat')
    .description(
      'Loads a model over its devices and continues a prompt: the argument, that of the YAML, or standard input. ' +
        'On a terminal without a prompt it chats.',
    )
    .argument('<target>', 'a YAML file, a model folder, or the id of a cached model')
    .argument('[prompt]', 'the text to continue')
    .option('--json', 'print one JSON object with text, timings, plan and memory')
    .option('--quiet', 'print the text and errors only')
    .option('--verbose', 'say more, and show stacks of errors');
  addSettingFlags(command, { generation: true });
  command.action(async (target: string, prompt: string | undefined, flags: RunFlags) => {
    const config = readTarget(target, settingFlags(flags), io.env);
    await runTarget(config, prompt ?? config.prompt, flags, io);
  });
}

async function runTarget(config: RunConfig, given: string | undefined, flags: RunFlags, io: CliIo): Promise<void> {
  const isChat = given === undefined && io.stdin.isTTY === true;
  if (isChat && flags.json)
    throw new ConfigError('--json: expected a prompt as argument or on standard input, got a terminal');
  const prompt = given ?? (isChat ? '' : await readAll(io.stdin));
  if (!isChat && prompt === '') {
    throw new ConfigError('prompt: expected a text as argument, in the YAML or on standard input, got none');
  }
  await withTarget(config, flags, io, async ({ model, interrupts, signal }) => {
    if (isChat) await chat(model, config, flags, io, interrupts, signal);
    else await printContinuation(model, prompt, config, flags, io, signal);
  });
}

async function chat(
  model: LoadedModel,
  config: RunConfig,
  flags: RunFlags,
  io: CliIo,
  interrupts: Interrupts,
  signal: AbortSignal,
): Promise<void> {
  await runChat(model, toGenerateOptions(config), io, interrupts, signal);
  signal.throwIfAborted();
  if (!flags.quiet) io.stderr.write(`${memoryLines(await model.stats()).join('\n')}\n`);
}

interface Continuation {
  text: string;
  tokenIds: number[];
  finishReason: string | undefined;
  usage: { promptTokens: number; completionTokens: number } | undefined;
  firstTokenMs: number;
  /** Of the tokens after the first. */
  tokensPerSecond: number;
}

async function printContinuation(
  model: LoadedModel,
  text: string,
  config: RunConfig,
  flags: RunFlags,
  io: CliIo,
  signal: AbortSignal,
): Promise<void> {
  const prompt = model.tokenizer === null ? readIds(text) : text;
  const colors = colorsFor(io.stderr, io.env);
  if (!flags.json && !flags.quiet && io.stdout.isTTY && io.stderr.isTTY) io.stderr.write(colors.dim(text));
  const done = await generate(model, prompt, config, signal, flags.json ? undefined : io);
  if (flags.json) {
    const report = {
      model: config.model,
      prompt: text,
      ...done,
      plan: model.plan,
      devices: await model.stats(),
      processPeakBytes: processPeakBytes(),
    };
    await writeText(io.stdout, `${JSON.stringify(report, null, 2)}\n`);
  } else {
    await writeText(io.stdout, '\n');
    if (!flags.quiet)
      io.stderr.write(`${colors.dim([speedLine(done), ...memoryLines(await model.stats())].join('\n'))}\n`);
  }
}

/** Runs to the end, writing pieces as they come. Throws the signal's reason when it was aborted. */
async function generate(
  model: LoadedModel,
  prompt: Prompt,
  config: RunConfig,
  signal: AbortSignal,
  io?: CliIo,
): Promise<Continuation> {
  const done: Continuation = {
    text: '',
    tokenIds: [],
    finishReason: undefined,
    usage: undefined,
    firstTokenMs: 0,
    tokensPerSecond: 0,
  };
  const started = performance.now();
  let last = started;
  for await (const piece of model.generate(prompt, { ...toGenerateOptions(config), signal })) {
    if (piece.tokenIds.length > 0) {
      last = performance.now();
      if (done.tokenIds.length === 0) done.firstTokenMs = last - started;
    }
    const text = model.tokenizer === null ? piece.tokenIds.map((id) => `${id} `).join('') : piece.text;
    done.text += text;
    done.tokenIds.push(...piece.tokenIds);
    done.finishReason = piece.finishReason ?? done.finishReason;
    done.usage = piece.usage ?? done.usage;
    if (io !== undefined) await writeText(io.stdout, text);
  }
  signal.throwIfAborted();
  const decodeMs = last - started - done.firstTokenMs;
  done.tokensPerSecond = decodeMs > 0 ? ((done.tokenIds.length - 1) * 1000) / decodeMs : 0;
  return done;
}

/** A folder without tokenizer takes token ids: `"1 403 407"`. */
function readIds(text: string): number[] {
  const words = text.split(/[\s,]+/).filter((word) => word !== '');
  if (words.length > 0 && words.every((word) => /^\d+$/.test(word))) return words.map(Number);
  throw new ArgumentError(
    `prompt: expected token ids such as "1 403 407", as the model has no tokenizer, got ${JSON.stringify(text.slice(0, 40))}`,
  );
}

function speedLine({ tokenIds, tokensPerSecond, firstTokenMs }: Continuation): string {
  const speed = tokensPerSecond > 0 ? `, ${tokensPerSecond.toFixed(1)} tokens/s` : '';
  return `${tokenIds.length} tokens${speed}, first token after ${firstTokenMs.toFixed(1)} ms`;
}

function memoryLines(stats: readonly DeviceStats[]): string[] {
  const peaks = stats.map(
    ({ device, peakBytes, plannedBytes, threadId }) =>
      `${device} ${formatBytes(peakBytes)} (planned ${formatBytes(plannedBytes)}, thread ${threadId})`,
  );
  return [`peak memory: ${peaks.join(', ')}`, `peak memory of the process: ${formatBytes(processPeakBytes())}`];
}

/** Peak resident memory of this process. */
function processPeakBytes(): number {
  return process.resourceUsage().maxRSS * 1024;
}
