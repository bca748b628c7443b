/** The packed store of a model: found, written when asked, and how devices load from it. The format is `packed-store.ts`. */
import { join } from 'node:path';
import { MessageChannel } from 'node:worker_threads';
import { type CheckpointIndex, fromPlainError, type PlainError, type Program, type TensorId } from '@metashard/core';
import { Piscina } from 'piscina';
import type { LoadInstruction } from './executor-protocol.js';
import type { MappedStore } from './executors.js';
import type { PackProgress } from './pack-model.js';
import type { PackTask } from './pack-worker.js';
import { openStore, type StoreHeader, sourceOf, storeFolder, storeName } from './packed-store.js';

export interface StoreRequest {
  program: Program;
  checkpoint: CheckpointIndex;
  /** How the weights are made from the checkpoint. */
  sources: ReadonlyMap<TensorId, LoadInstruction>;
  offloadFolder?: string | undefined;
}

/** The store that holds this Program's weights from this checkpoint, or null. */
export function findStore({ program, checkpoint, offloadFolder }: Omit<StoreRequest, 'sources'>): MappedStore | null {
  const source = sourceOf(checkpoint);
  const file = join(storeFolder(offloadFolder), storeName(program, source));
  const header = openStore(file, program, source);
  return header === null ? null : { file, tensors: placesOf(program, header) };
}

/** Writes the store on a thread of its own; returns it. Throws CheckpointError, OutOfMemoryError, and the signal's reason. */
export async function writeStore(
  { program, checkpoint, sources, offloadFolder }: StoreRequest,
  {
    onProgress,
    signal,
  }: { onProgress?: ((progress: PackProgress) => void) | undefined; signal?: AbortSignal | undefined } = {},
): Promise<MappedStore> {
  const source = sourceOf(checkpoint);
  const { port1, port2 } = new MessageChannel();
  if (onProgress !== undefined) port1.on('message', onProgress);
  const pool = new Piscina({
    filename: new URL('./pack-worker.js', import.meta.url).href,
    minThreads: 1,
    maxThreads: 1,
    atomics: 'disabled',
  });
  const cancel = new SharedArrayBuffer(4);
  const abort = (): void => {
    Atomics.store(new Int32Array(cancel), 0, 1);
  };
  signal?.addEventListener('abort', abort);
  try {
    const task: PackTask = { program, source, sources, folder: storeFolder(offloadFolder), port: port2, cancel };
    const result = (await pool.run(task, { transferList: [port2] })) as { ok: string } | { error: PlainError };
    signal?.throwIfAborted();
    if ('error' in result) throw fromPlainError(result.error);
    const header = openStore(result.ok, program, source) as StoreHeader;
    return { file: result.ok, tensors: placesOf(program, header) };
  } finally {
    signal?.removeEventListener('abort', abort);
    port1.close();
    await pool.destroy();
  }
}

function placesOf(program: Program, header: StoreHeader): Map<TensorId, { offset: number; nbytes: number }> {
  const places = new Map<TensorId, { offset: number; nbytes: number }>();
  for (const [id, tensor] of program.tensors.entries()) {
    const stored = tensor.kind === 'weight' ? header.tensors[tensor.name ?? ''] : undefined;
    if (stored !== undefined) places.set(id, { offset: stored.offset, nbytes: stored.nbytes });
  }
  return places;
}

/** Copies from the store, for devices that do not read host memory. */
export function storedSources(store: MappedStore): Map<TensorId, LoadInstruction> {
  return new Map(
    [...store.tensors].map(([tensor, { offset, nbytes }]) => [
      tensor,
      { kind: 'stored', tensor, file: store.file, offset, nbytes },
    ]),
  );
}
