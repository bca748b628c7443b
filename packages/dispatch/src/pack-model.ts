/** Writes a packed store: every weight is loaded as a device would, tensor by tensor, and written out; never more than one tensor in memory. */
import { randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import {
  CheckpointError,
  DeviceContext,
  guardNative,
  MEMORY_KINDS,
  native,
  type Program,
  type ProgramTensor,
  parseDevice,
  StateError,
  type TensorId,
} from '@metashard/core';
import type { LoadInstruction } from './executor-protocol.js';
import { WeightLoader } from './load-weights.js';
import {
  checksumsOf,
  encodeStoreHeader,
  ensureStoreFolder,
  layOut,
  type SourceFile,
  STORE_LAYOUT,
  STORE_VERSION,
  storeHeaderBytes,
  storeName,
} from './packed-store.js';

const WINDOW_BYTES = 16 * 2 ** 20;

export interface PackProgress {
  tensor: string;
  writtenBytes: number;
  totalBytes: number;
}

/**
 * Packs the weights of a Program into `folder`; returns the file. Another name first, then flushed and renamed, so a store is whole or not there.
 * Throws CheckpointError (files, disk), OutOfMemoryError.
 */
export function packModel(
  program: Program,
  source: SourceFile[],
  sources: ReadonlyMap<TensorId, LoadInstruction>,
  folder: string,
  {
    onProgress,
    cancelled,
  }: { onProgress?: ((progress: PackProgress) => void) | undefined; cancelled?: (() => boolean) | undefined } = {},
): string {
  ensureStoreFolder(folder);
  const target = join(folder, storeName(program, source));
  const temporary = `${target}.${process.pid}-${randomBytes(6).toString('hex')}.tmp`;
  const { tensors, dataBytes } = layOut(program);
  const named = Object.fromEntries([...tensors].map(([id, one]) => [program.tensors[id]?.name as string, one]));
  const { bytes, header } = encodeStoreHeader(
    { layout: STORE_LAYOUT, version: STORE_VERSION, source, tensors: named, checksums: [] },
    dataBytes,
  );
  const descriptor = openTemporary(temporary);
  const context = new DeviceContext(parseDevice('cpu:0'));
  let tensor = 'its header';
  try {
    writeAll(descriptor, bytes, 0);
    let written = 0;
    const write = (id: TensorId, buffer: number): void => {
      const { name } = program.tensors[id] as ProgramTensor;
      tensor = name as string;
      const stored = header.tensors[name as string] as { offset: number; nbytes: number };
      copyOut(buffer, stored.nbytes, descriptor, stored.offset);
      written += stored.nbytes;
      onProgress?.({ tensor: name as string, writtenBytes: written, totalBytes: dataBytes });
    };
    packTensors(program, sources, context, write, cancelled);
    fsyncSync(descriptor);
    writeAll(descriptor, storeHeaderBytes({ ...header, checksums: checksumsOf(temporary, header) }), 0);
    fsyncSync(descriptor);
    renameSync(temporary, target);
    return target;
  } catch (error) {
    rmSync(temporary, { force: true });
    throw namingFile(error, target, tensor);
  } finally {
    closeSync(descriptor);
    context.close();
  }
}

function openTemporary(file: string): number {
  try {
    return openSync(file, 'wx+');
  } catch (error) {
    throw namingFile(error, file, 'its header');
  }
}

/** What the file system says (a full disk, a folder that may not be written) as a typed error; others as they are. */
function namingFile(error: unknown, file: string, tensor: string): unknown {
  if (!(error instanceof Error) || !('syscall' in error)) return error;
  return new CheckpointError(`${file}: packed store: ${tensor} cannot be written: ${error.message}`, {
    code: 'store_unwritable',
    hint: 'make room, or name another folder with offload_folder; nothing was left behind',
    details: { file, tensor },
    cause: error,
  });
}

function packTensors(
  program: Program,
  sources: ReadonlyMap<TensorId, LoadInstruction>,
  context: DeviceContext,
  write: (id: TensorId, buffer: number) => void,
  cancelled: () => boolean = () => false,
): void {
  const bytesOf = new Map([...layOut(program).tensors].map(([id, { nbytes }]) => [id, nbytes]));
  for (const instruction of sources.values()) {
    if (cancelled()) throw new StateError('pack: cancelled');
    const ids = 'tensor' in instruction ? [instruction.tensor] : [instruction.CB, instruction.SCB];
    const buffers = new Map(
      ids.map((id) => [id, context.alloc(bytesOf.get(id) ?? 1, MEMORY_KINDS.indexOf('weights'))]),
    );
    const loader = new WeightLoader(context, program, (id) => ({ buffer: buffers.get(id) as number, byteOffset: 0 }));
    try {
      loader.run(instruction);
      for (const [id, buffer] of buffers) write(id, buffer);
    } finally {
      loader.close();
      for (const buffer of buffers.values()) native().free(buffer);
    }
  }
}

function copyOut(buffer: number, bytes: number, descriptor: number, offset: number): void {
  for (let at = 0; at < bytes; at += WINDOW_BYTES) {
    const window = new Uint8Array(Math.min(WINDOW_BYTES, bytes - at));
    guardNative('cpu:0', 'read', () => native().read(buffer, at, window));
    writeAll(descriptor, window, offset + at);
  }
}

function writeAll(descriptor: number, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.length; )
    done += writeSync(descriptor, bytes, done, bytes.length - done, offset + done);
}
