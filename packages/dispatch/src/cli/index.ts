/** The command line: its verbs, one file each, and what is the same for all: help, version, errors and exit codes. */
import { createRequire } from 'node:module';
import { Command, CommanderError } from 'commander';
import { defineBench } from './bench.js';
import { defineCalibrate } from './calibrate.js';
import { type CliIo, OutputClosed } from './cli-io.js';
import { defineDevices } from './devices.js';
import { defineEstimate } from './estimate.js';
import { Stopped } from './interrupts.js';
import { definePack } from './pack.js';
import { definePlan } from './plan.js';
import { defineQuantCompare } from './quant-compare.js';
import { EXIT, reportError } from './report-error.js';
import { defineRun } from './run.js';

/**
 * Runs a command line (without `node` and the script's name) and gives its exit code: 0; 1 failed; 2 usage or config; 3
 * does not fit; 130 Ctrl-C. Never throws and never exits, except on a second Ctrl-C.
 */
export async function runCli(argv: readonly string[], io: CliIo = process): Promise<number> {
  const ignoreClosed = () => {}; // a closed reader is found by the next write
  io.stdout.on('error', ignoreClosed);
  try {
    await makeProgram(io).parseAsync(argv, { from: 'user' });
    return EXIT.ok;
  } catch (error) {
    if (error instanceof Stopped) return EXIT.interrupted;
    if (error instanceof OutputClosed) return EXIT.ok;
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    return reportError(error, io, argv.includes('--verbose'));
  } finally {
    io.stdout.off('error', ignoreClosed);
  }
}

function makeProgram(io: CliIo): Command {
  const { version } = createRequire(import.meta.url)('../../package.json') as { version: string };
  const program = new Command('metashard')
    .description('Loads transformers too large for any one device in 8 bits and runs them over all devices together.')
    .version(version, '--version', 'print the version')
    .helpOption('--help', 'print help')
    .exitOverride()
    .configureOutput({ writeOut: (text) => void io.stdout.write(text), writeErr: (text) => void io.stderr.write(text) })
    .configureHelp({ helpWidth: 110 })
    .addHelpText(
      'after',
      '\nSettings: a flag wins over METASHARD_* in the environment, that over the YAML file, that over the default.',
    );
  defineRun(program, io);
  definePlan(program, io);
  defineEstimate(program, io);
  definePack(program, io);
  defineCalibrate(program, io);
  defineBench(program, io);
  defineDevices(program, io);
  defineQuantCompare(program, io);
  return program;
}
