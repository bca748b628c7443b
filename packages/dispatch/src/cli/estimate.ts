/**
 * `metashard estimate`: what a model takes in each dtype and which common machines run it in 8 bits, from its
 * config.json alone.
 */
import { formatBytes } from '@metashard/core';
import type { Command } from 'commander';
import { drawTable } from '../draw-table.js';
import type { ModelEstimate } from '../estimate.js';
import { type CliIo, writeText } from './cli-io.js';
import { addSettingFlags, readTarget, settingFlags } from './target.js';

export function defineEstimate(program: Command, io: CliIo): void {
  const command = program
    .command('estimate')
    .summary('show what a model takes and which machines hold it')
    .description(
      'Shows weights per dtype, KV cache and how many of some common GPUs a model needs. Needs a config.json only.',
    )
    .argument('<target>', 'a model folder, the id of a cached model, or a YAML file')
    .option('--json', 'print JSON')
    .option('--verbose', 'show stacks of errors');
  addSettingFlags(command, { only: ['revision', 'max_seq_len', 'max_batch_size'] });
  command.action(async (target: string, flags: Record<string, unknown> & { json?: boolean }) => {
    const config = readTarget(target, settingFlags(flags), io.env);
    const { estimateModel } = await import('../estimate.js');
    const { max_seq_len: maxSeqLen, max_batch_size: maxBatchSize, revision } = config;
    const estimate = await estimateModel(config.model, { maxSeqLen, maxBatchSize, revision });
    await writeText(
      io.stdout,
      flags.json ? `${JSON.stringify(estimate, null, 2)}\n` : `${formatEstimate(estimate, io.stdout)}\n`,
    );
  });
}

const DTYPE_NAMES = { float32: 'float32', float16: 'float16, bfloat16', int8: 'int8' } as const;

/** Two tables and a line. */
export function formatEstimate(estimate: ModelEstimate, { columns }: { columns?: number | undefined } = {}): string {
  const { model, parameters, maxSeqLen, maxBatchSize, dtypes, kvCache, setups } = estimate;
  const weights = dtypes.map(({ dtype, weightsBytes, largestBlock, largestModule }) => [
    DTYPE_NAMES[dtype],
    formatBytes(weightsBytes),
    largestBlock === null ? '–' : formatBytes(largestBlock.bytes),
    formatBytes(largestModule.bytes),
    largestModule.module,
  ]);
  const machines = setups.map(({ name, memoryBytes, count, freeBytes, problem }) => [
    name,
    formatBytes(memoryBytes),
    count === null ? 'no' : String(count),
    freeBytes === null ? `needs ${formatBytes(problem?.neededBytes ?? 0)}` : `${formatBytes(freeBytes)} free`,
  ]);
  return [
    `${model}: ${parameters.toLocaleString('en-US')} parameters`,
    drawTable(['weights in', 'in all', 'a block', 'largest module', 'which is'], weights, { leftColumns: 1, columns }),
    `KV cache of ${kvCache.tokens} tokens: ${formatBytes(kvCache.float32Bytes)} in float32, ${formatBytes(kvCache.float16Bytes)} in float16`,
    '',
    `in int8 with max_seq_len ${maxSeqLen}, max_batch_size ${maxBatchSize}, 0.9 of each memory offered:`,
    drawTable(['on', 'memory', 'needed', 'fullest device'], machines, { leftColumns: 1, columns }),
  ].join('\n');
}
