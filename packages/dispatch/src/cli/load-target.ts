/** Loading a model for a verb: the plan and the progress go to standard error unless it is to be silent. */
import type { RunConfig } from '../config/run-config.js';
import { toLoadOptions } from '../config/run-options.js';
import type { LoadedModel } from '../loaded-model.js';
import type { Logger } from '../options.js';
import { formatPlanTable } from '../plan-table.js';
import { showLoadProgress } from '../progress-bar.js';
import type { CliIo } from './cli-io.js';
import { Interrupts, Stopped } from './interrupts.js';

export interface LoadFlags {
  json?: boolean;
  quiet?: boolean;
  verbose?: boolean;
}

/** What a verb has while its model is loaded. `signal` is that of the first Ctrl-C. */
export interface LoadedTarget {
  model: LoadedModel;
  interrupts: Interrupts;
  signal: AbortSignal;
  loadMs: number;
}

/** Loads, uses and disposes a model. Throws what `loadModel` and `use` throw, and Stopped after Ctrl-C. */
export async function withTarget(
  config: RunConfig,
  flags: LoadFlags,
  io: CliIo,
  use: (target: LoadedTarget) => Promise<void>,
): Promise<void> {
  const interrupts = new Interrupts();
  const { signal, end } = interrupts.begin();
  try {
    const started = performance.now();
    const model = await loadTarget(config, flags, io, signal);
    try {
      await use({ model, interrupts, signal, loadMs: performance.now() - started });
    } finally {
      await model.dispose();
    }
  } catch (error) {
    throw signal.aborted ? new Stopped() : error;
  } finally {
    end();
    interrupts.dispose();
  }
}

async function loadTarget(config: RunConfig, flags: LoadFlags, io: CliIo, signal: AbortSignal): Promise<LoadedModel> {
  const { loadModel, planModel } = await import('../load-model.js');
  const options = { ...toLoadOptions(config), signal, logger: loggerFor(flags, io) };
  const isSilent = flags.quiet === true || flags.json === true;
  if (!isSilent) io.stderr.write(`${formatPlanTable(await planModel(config.model, options), io.stderr)}\n`);
  const progress = showLoadProgress({ stream: io.stderr, env: io.env, quiet: isSilent });
  try {
    const model = await loadModel(config.model, { ...options, onProgress: (step) => progress.update(step) });
    if (!isSilent && model.thresholdChoice !== null) io.stderr.write(`${model.thresholdChoice.summary}\n`);
    return model;
  } finally {
    progress.stop();
  }
}

function loggerFor({ verbose, quiet }: LoadFlags, io: CliIo): Logger {
  const write = (message: string) => void io.stderr.write(`${message}\n`);
  const silent = () => {};
  return { info: verbose ? write : silent, warn: quiet ? silent : write, debug: verbose ? write : silent };
}
