/**
 * Writes tensors as one safetensors file, so that an interrupted save never leaves a file that loads wrongly: a
 * temporary name beside the target, flushed to disk, then renamed. Sharding and config.json are saveCheckpoint's
 * business.
 */
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { callOp } from './backend.js';
import { DTYPES } from './dtype.js';
import { ArgumentError, StateError } from './errors.js';
import { contiguous } from './functional.js';
import { encodeSafetensorsHeader, fileError, MAX_HEADER_BYTES } from './safetensors.js';
import type { Tensor } from './tensor.js';

const WINDOW_BYTES = 16 * 2 ** 20;

/**
 * Saves a state dict. The file depends on names, values and metadata only: wide dtypes come first (so that every tensor
 * starts at a multiple of its element), then names in order. Packed int8 weights are written row by row. `metadata` is
 * text by text (`{ format: 'pt' }`).
 * Throws StateError (a tensor on meta), ArgumentError (the name `__metadata__`, metadata that is not text),
 * CheckpointError (the disk).
 */
export async function saveSafetensors(
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
  metadata: Readonly<Record<string, string>> | ReadonlyMap<string, string> = {},
): Promise<void> {
  const entries = sortedEntries(tensors);
  const header = encodeSafetensorsHeader(
    entries.map(([name, { dtype, shape, nbytes }]) => ({ name, dtype, shape, nbytes })),
    checkedMetadata(metadata),
  );
  if (header.length - 8 > MAX_HEADER_BYTES) {
    throw new ArgumentError(`save: expected a header of at most ${MAX_HEADER_BYTES} bytes, got ${header.length - 8}`);
  }
  const temporary = `${path}.${process.pid}-${crypto.randomUUID()}.tmp`;
  try {
    await writeFile(temporary, header, entries);
    await rename(temporary, path);
    await flushFolder(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw fileError(path, error, 'write');
  }
}

function sortedEntries(tensors: ReadonlyMap<string, Tensor>): [string, Tensor][] {
  for (const [name, tensor] of tensors) {
    if (name === '__metadata__') throw new ArgumentError('save: expected a tensor name, got __metadata__');
    if (tensor.storage === null) throw new StateError(`save: tensor "${name}": expected values, got a tensor on meta`);
  }
  const width = (tensor: Tensor): number => DTYPES[tensor.dtype].bytes;
  return [...tensors].sort(([a, x], [b, y]) => width(y) - width(x) || (a < b ? -1 : 1));
}

function checkedMetadata(
  metadata: Readonly<Record<string, string>> | ReadonlyMap<string, string>,
): Map<string, string> {
  const pairs = new Map<string, unknown>(metadata instanceof Map ? metadata : Object.entries(metadata));
  for (const [key, value] of pairs) {
    if (typeof value !== 'string') {
      throw new ArgumentError(`save: metadata ${JSON.stringify(key)}: expected text, got ${typeof value}`);
    }
  }
  return pairs as Map<string, string>;
}

async function writeFile(path: string, header: Buffer, entries: readonly [string, Tensor][]): Promise<void> {
  const largest = entries.reduce((most, [, tensor]) => Math.max(most, tensor.nbytes), 0);
  const window = Buffer.allocUnsafe(Math.min(WINDOW_BYTES, largest));
  const handle = await open(path, 'wx');
  try {
    await writeAll(handle, header);
    for (const [, tensor] of entries) await writeTensor(handle, tensor, window);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** A tensor's elements, row by row, a window at a time; never all of them in JavaScript at once. */
async function writeTensor(handle: FileHandle, tensor: Tensor, window: Buffer): Promise<void> {
  const packed = tensor.layout === 'packed_int8';
  const dense = packed ? (callOp('unpack_int8', [tensor])[0] as Tensor) : contiguous(tensor);
  const start = dense.offset * DTYPES[dense.dtype].bytes;
  for (let done = 0; done < dense.nbytes; done += window.length) {
    const part = window.subarray(0, Math.min(window.length, dense.nbytes - done));
    dense.storage?.read(start + done, part);
    await writeAll(handle, part);
  }
}

async function writeAll(handle: FileHandle, bytes: Buffer): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await handle.write(bytes, done, bytes.length - done)).bytesWritten;
  }
}

/**
 * Makes the rename itself last, where the folder can be opened and the file system can flush one; the file is whole
 * either way.
 */
async function flushFolder(folder: string): Promise<void> {
  const handle = await open(folder).catch(() => undefined);
  await handle?.sync().catch(() => undefined);
  await handle?.close();
}
