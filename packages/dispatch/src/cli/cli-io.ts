/**
 * What the command line reads and writes: the process, or streams of a test. Writing waits for slow readers and ends
 * quietly when they are gone.
 */
import type { Readable, Writable } from 'node:stream';
import picocolors from 'picocolors';

export interface CliIo {
  stdin: Readable & { isTTY?: boolean };
  stdout: Writable & { isTTY?: boolean; columns?: number };
  stderr: Writable & { isTTY?: boolean; columns?: number };
  env: NodeJS.ProcessEnv;
}

/** The reader of standard output is gone (`| head`): nothing more to do, and nothing to say. */
export class OutputClosed extends Error {}

/** Writes and waits until there is room for more. Throws OutputClosed when nobody reads any more. */
export async function writeText(stream: Writable, text: string): Promise<void> {
  if (text === '') return;
  if (stream.destroyed || stream.errored) throw new OutputClosed();
  const error = await new Promise<Error | null | undefined>((done) => {
    stream.write(text, done);
  });
  if (error) throw isClosed(error) ? new OutputClosed() : error;
}

function isClosed(error: Error): boolean {
  return ['EPIPE', 'ERR_STREAM_DESTROYED', 'ECONNRESET'].includes((error as NodeJS.ErrnoException).code ?? '');
}

/** All of standard input as text, without the newline at its end. */
export async function readAll(stdin: Readable): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of stdin) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks)
    .toString('utf8')
    .replace(/\r?\n$/, '');
}

/** Colours for a stream: none unless it is a terminal and NO_COLOR is unset. */
export function colorsFor(stream: { isTTY?: boolean }, env: NodeJS.ProcessEnv) {
  return picocolors.createColors(stream.isTTY === true && !env.NO_COLOR && env.TERM !== 'dumb');
}
