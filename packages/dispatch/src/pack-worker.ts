/** Entry of the thread that writes a packed store, so that the main thread goes on meanwhile. */
import '@metashard/cpu';
import type { MessagePort } from 'node:worker_threads';
import { type PlainError, type Program, type TensorId, toPlainError } from '@metashard/core';
import type { LoadInstruction } from './executor-protocol.js';
import { packModel } from './pack-model.js';
import type { SourceFile } from './packed-store.js';

export interface PackTask {
  program: Program;
  source: SourceFile[];
  sources: ReadonlyMap<TensorId, LoadInstruction>;
  folder: string;
  port: MessagePort;
  /** Its first word is set when the caller gives up. */
  cancel: SharedArrayBuffer;
}

export default function pack({
  program,
  source,
  sources,
  folder,
  port,
  cancel,
}: PackTask): { ok: string } | { error: PlainError } {
  const flag = new Int32Array(cancel);
  const cancelled = (): boolean => Atomics.load(flag, 0) !== 0;
  try {
    return {
      ok: packModel(program, source, sources, folder, {
        onProgress: (progress) => port.postMessage(progress),
        cancelled,
      }),
    };
  } catch (error) {
    return { error: toPlainError(error) };
  }
}
