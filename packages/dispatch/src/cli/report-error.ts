/** Errors for people: the message, one hint, and an exit code. A stack only when asked for. */
import { MetashardError } from '@metashard/core';
import { type CliIo, colorsFor } from './cli-io.js';

export const EXIT = { ok: 0, failed: 1, usage: 2, doesNotFit: 3, interrupted: 130 } as const;

const USAGE = new Set(['ConfigError', 'ModelNotFoundError', 'DeviceMapError', 'ArgumentError', 'ContextLengthError']);
const DOES_NOT_FIT = new Set(['InsufficientMemoryError', 'OutOfMemoryError']);

/** Exit code of an error: 2 usage or config, 3 does not fit, 1 everything else. */
export function exitCodeOf(error: unknown): number {
  if (!MetashardError.isInstance(error)) return EXIT.failed;
  if (USAGE.has(error.name)) return EXIT.usage;
  return DOES_NOT_FIT.has(error.name) ? EXIT.doesNotFit : EXIT.failed;
}

/** Writes an error to standard error and gives its exit code. */
export function reportError(error: unknown, io: CliIo, verbose: boolean): number {
  const colors = colorsFor(io.stderr, io.env);
  const lines = messagesOf(error).map((line) => `${colors.red('error:')} ${line}`);
  if (MetashardError.isInstance(error) && error.hint !== undefined) lines.push(`${colors.cyan('hint:')} ${error.hint}`);
  if (verbose) lines.push(...stacks(error));
  io.stderr.write(`${lines.join('\n')}\n`);
  return exitCodeOf(error);
}

/** A ConfigError lists all its problems; any other error has one message. */
function messagesOf(error: unknown): string[] {
  if (!MetashardError.isInstance(error)) return [String((error as Error)?.message ?? error)];
  const { problems } = error.details;
  return Array.isArray(problems) && problems.length > 1 ? problems.map(String) : [error.message];
}

function stacks(error: unknown): string[] {
  const lines: string[] = [];
  for (let at = error; at instanceof Error && lines.length < 8; at = at.cause) {
    lines.push(`${lines.length === 0 ? '' : 'caused by '}${at.stack ?? at.message}`);
  }
  return lines;
}
