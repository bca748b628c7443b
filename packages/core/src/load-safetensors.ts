/**
 * Tensor data of checkpoints (safetensors and PyTorch files) into tensors, for state dicts, tests and small models. A
 * model's weights do not come this way: executors read them natively (`loadWeight`). Data pass through one window, so
 * memory in JavaScript is bounded whatever a tensor's size; only a tensor with strides is gathered there as a whole.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { type CheckpointFile, type CheckpointIndex, type CheckpointTensor, openCheckpointSync } from './checkpoint.js';
import type { DeviceName } from './device.js';
import { DTYPES } from './dtype.js';
import { nearestWord } from './errors.js';
import { gatherStrided } from './gather-strided.js';
import { checkpointError, fileError } from './safetensors.js';
import { empty, type Tensor } from './tensor.js';

const WINDOW_BYTES = 16 * 2 ** 20;

export interface ReadOptions {
  /** Where the tensors are made; `cpu` by default. */
  device?: DeviceName;
}

/** A tensor to fill: its name, where its bytes lie, and the tensor made for it. */
type Wanted = readonly [name: string, entry: CheckpointTensor, made: Tensor];

/**
 * All tensors of a safetensors or PyTorch file (or of a checkpoint folder), by name, in the order of the header.
 * Throws CheckpointError: a broken file, a dtype that metashard does not have.
 */
export async function loadSafetensors(path: string, options: ReadOptions = {}): Promise<Map<string, Tensor>> {
  const index = openCheckpointSync(path);
  return readTensors(index, index.tensors.keys(), options);
}

/**
 * One tensor of a checkpoint. Throws CheckpointError: no such tensor, a dtype that metashard does not have, a file that
 * changed or fails.
 */
export async function readTensor(index: CheckpointIndex, name: string, options: ReadOptions = {}): Promise<Tensor> {
  return (await readTensors(index, [name], options)).get(name) as Tensor;
}

/** Tensors of a checkpoint by name, each file opened once. Throws as `readTensor`. */
export async function readTensors(
  index: CheckpointIndex,
  names: Iterable<string>,
  { device = 'cpu' }: ReadOptions = {},
): Promise<Map<string, Tensor>> {
  const tensors = new Map<string, Tensor>();
  const byFile = new Map<number, Wanted[]>();
  for (const name of names) {
    const entry = entryOf(index, name);
    const made = empty(entry.shape, { dtype: entry.dtype, device });
    tensors.set(name, made);
    const wanted = byFile.get(entry.file) ?? [];
    byFile.set(entry.file, wanted);
    if (made.storage !== null) wanted.push([name, entry, made]);
  }
  for (const [file, wanted] of byFile) await fillFrom(index.files[file] as CheckpointFile, wanted);
  return tensors;
}

/** The entry of a tensor that can be read: present, and of a dtype that metashard has. */
function entryOf(
  index: CheckpointIndex,
  name: string,
): CheckpointTensor & { dtype: NonNullable<CheckpointTensor['dtype']> } {
  const entry = index.tensors.get(name);
  if (entry === undefined) {
    const near = name.length <= 100 && index.tensors.size <= 5000 ? nearestWord(name, index.tensors.keys()) : undefined;
    const hint = near === undefined ? undefined : `did you mean ${near.slice(0, 200)}`;
    throw checkpointError(index.folder, name, `expected it among ${index.tensors.size} tensors, got none`, { hint });
  }
  const { dtype } = entry;
  if (dtype === null) {
    const path = index.files[entry.file]?.path ?? index.folder;
    throw checkpointError(
      path,
      name,
      `expected a dtype that metashard has, got ${JSON.stringify(entry.storedDtype.slice(0, 40))}`,
    );
  }
  return { ...entry, dtype };
}

async function fillFrom({ path, bytes }: CheckpointFile, wanted: readonly Wanted[]): Promise<void> {
  const largest = wanted.reduce((most, [, entry]) => Math.max(most, entry.nbytes), 0);
  const window = Buffer.allocUnsafe(Math.min(WINDOW_BYTES, largest));
  let handle: FileHandle | undefined;
  try {
    handle = await open(path);
    const { size } = await handle.stat();
    if (size !== bytes) {
      throw checkpointError(path, undefined, `expected ${bytes} bytes as when it was opened, got ${size}`);
    }
    for (const one of wanted) await fill(one, handle, path, window);
  } catch (error) {
    throw fileError(path, error);
  } finally {
    await handle?.close();
  }
}

/** Copies a tensor's bytes from the file into its storage, a window at a time. */
async function fill([name, entry, made]: Wanted, handle: FileHandle, path: string, window: Buffer): Promise<void> {
  const read = async (into: Uint8Array, position: number): Promise<void> => {
    for (let done = 0; done < into.length; ) {
      const { bytesRead } = await handle.read(into, done, into.length - done, entry.offset + position + done);
      if (bytesRead === 0) throw cutShort(path, name, entry.nbytes, position + done);
      done += bytesRead;
    }
  };
  if (entry.strides !== undefined) {
    const { shape, strides } = entry;
    made.storage?.write(0, await gatherStrided({ shape, strides, elementBytes: DTYPES[made.dtype].bytes }, read));
    return;
  }
  for (let done = 0; done < entry.nbytes; done += window.length) {
    const part = window.subarray(0, Math.min(window.length, entry.nbytes - done));
    await read(part, done);
    made.storage?.write(done, part);
  }
}

function cutShort(path: string, name: string, nbytes: number, done: number): Error {
  return checkpointError(path, name, `expected ${nbytes} bytes, got ${done}: the file was cut short`);
}
