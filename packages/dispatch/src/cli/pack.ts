/**
 * `metashard pack`: writes a model's packed store, or checks one. Later loads of the model, by any process, use it in
 * place.
 */
import { ArgumentError, formatBytes } from '@metashard/core';
import type { Command } from 'commander';
import { toLoadOptions } from '../config/run-options.js';
import { type CliIo, writeText } from './cli-io.js';
import { addSettingFlags, readTarget, settingFlags } from './target.js';

interface PackFlags extends Record<string, unknown> {
  verify?: boolean;
  json?: boolean;
  quiet?: boolean;
}

export function definePack(program: Command, io: CliIo): void {
  const command = program
    .command('pack')
    .summary('write the weights as kernels use them, for fast starts and streaming')
    .description(
      'Writes the packed store of a model: quantized, packed, ready to be mapped. With --verify checks every byte of one that is there.',
    )
    .argument('<target>', 'a YAML file, a model folder, or the id of a cached model; with --verify also a store')
    .option('--verify', 'check the checksums instead of writing')
    .option('--json', 'print the result as JSON')
    .option('--quiet', 'print nothing but errors')
    .option('--verbose', 'show stacks of errors');
  addSettingFlags(command, { generation: false });
  command.action(async (target: string, flags: PackFlags) => {
    const { checkStore } = await import('../packed-store.js');
    const isStore = target.endsWith('.metashard');
    if (isStore && !flags.verify)
      throw new ArgumentError(`pack: expected a model, got the store ${target}`, { hint: 'add --verify to check it' });
    const config = isStore ? null : readTarget(target, settingFlags(flags), io.env);
    const started = performance.now();
    const file = config === null ? target : await storeOf(config.model, toLoadOptions(config), flags, io);
    if (flags.verify) checkStore(file);
    const seconds = (performance.now() - started) / 1e3;
    if (flags.json)
      await writeText(io.stdout, `${JSON.stringify({ file, verified: flags.verify === true, seconds })}\n`);
    else if (!flags.quiet) await writeText(io.stdout, `${file}\n`);
    if (!flags.quiet && !flags.json)
      io.stderr.write(`${flags.verify ? 'every checksum holds' : 'packed'}, ${seconds.toFixed(1)} s\n`);
  });
}

async function storeOf(
  model: string,
  options: ReturnType<typeof toLoadOptions>,
  flags: PackFlags,
  io: CliIo,
): Promise<string> {
  const { packStore } = await import('../load-model.js');
  let last = 0;
  return packStore(model, options, {
    mustExist: flags.verify === true,
    onProgress: ({ tensor, writtenBytes, totalBytes }) => {
      if (flags.quiet || !io.stderr.isTTY || performance.now() - last < 100) return;
      last = performance.now();
      io.stderr.write(`\r\x1b[K${formatBytes(writtenBytes)} of ${formatBytes(totalBytes)}  ${tensor}`);
      if (writtenBytes === totalBytes) io.stderr.write('\r\x1b[K');
    },
  });
}
