/**
 * The container of `torch.save` before PyTorch 1.6 (and of `_use_new_zipfile_serialization=False`): pickles of a magic
 * number, a version, the machine, the object and the keys of its storages; then the storages one after another.
 * Format: `torch/serialization.py` of PyTorch 2.13, `_legacy_save` and `_legacy_load`. The tar archives of PyTorch 0.1
 * are not read.
 */
import { checkpointError, readSpan } from '../safetensors.js';
import { PickleInput } from './pickle-input.js';
import { PickleDict, PickleList, type PickleValue, type TorchTensor, typeName } from './pickle-values.js';
import type { Container } from './torch-checkpoint.js';
import { TorchStorages } from './torch-storages.js';
import { unpickle } from './unpickler.js';

/** `torch.serialization.MAGIC_NUMBER` and `PROTOCOL_VERSION`. */
const MAGIC = 0x1950a86a20f9469cfc6cn;
const VERSION = 1001n;
/** Read at first; the pickles of a small model. */
const FIRST_BYTES = 2 ** 16;

/** Reads the pickles and finds the storages. Throws CheckpointError. */
export function openLegacy(descriptor: number, file: string, fileBytes: number): Container {
  const prefix = (length: number): Buffer => readSpan(descriptor, file, 0, Math.min(length, fileBytes));
  const input = new PickleInput(file, prefix(FIRST_BYTES), prefix);
  const read = (): PickleValue => unpickle(input, new TorchStorages(true));
  const magic = read();
  if (magic !== MAGIC) throw notTorch(file, "PyTorch's magic number", magic);
  const version = read();
  if (version !== VERSION) throw notTorch(file, `format version ${VERSION}`, version);
  const machine = read();
  if (!(machine instanceof PickleDict) || machine.get('little_endian') !== true) {
    throw notTorch(file, 'numbers of a little-endian machine', machine);
  }
  const storages = new TorchStorages(true);
  const value = unpickle(input, storages);
  const keys = read();
  if (!(keys instanceof PickleList)) throw notTorch(file, 'a list of storages', keys);
  const starts = new Sections(descriptor, file, fileBytes).find(input.position, keys.items, storages);
  const locate = (storage: TorchTensor['storage']): number => {
    const start = starts.get(storage.key);
    if (start !== undefined) return start;
    throw storageError(file, storage.key, 'expected it after the pickles, got none');
  };
  return { kind: 'legacy', value, locate };
}

function notTorch(file: string, expected: string, got: PickleValue): Error {
  const what = typeof got === 'bigint' ? 'another number' : typeName(got);
  return checkpointError(file, undefined, `expected ${expected}, got ${what}`, {
    hint: 'is this a file of torch.save?',
  });
}

function storageError(file: string, key: string, what: string): Error {
  return checkpointError(file, undefined, `storage ${JSON.stringify(key.slice(0, 100))}: ${what}`);
}

/** The storages after the pickles: each 8 bytes of little-endian number of elements, and the elements. */
class Sections {
  readonly #descriptor: number;
  readonly #file: string;
  readonly #fileBytes: number;

  constructor(descriptor: number, file: string, fileBytes: number) {
    this.#descriptor = descriptor;
    this.#file = file;
    this.#fileBytes = fileBytes;
  }

  /** Where the elements of each storage start, by key; sections lie in the order of `keys` from `position` on. */
  find(position: number, keys: readonly PickleValue[], storages: TorchStorages): Map<string, number> {
    const starts = new Map<string, number>();
    let at = position;
    for (const key of keys) {
      if (typeof key !== 'string') throw notTorch(this.#file, 'the key of a storage', key);
      const storage = storages.byKey.get(key);
      if (storage === undefined || starts.has(key)) {
        const times = storage === undefined ? 'none' : 'it twice';
        throw storageError(this.#file, key, `expected a storage of the pickle, got ${times}`);
      }
      this.#checkCount(at, key, storage.nbytes / storage.dtype.bytes);
      starts.set(key, at + 8);
      at += 8 + storage.nbytes;
      if (at > this.#fileBytes) {
        throw storageError(this.#file, key, `expected its end within ${this.#fileBytes} bytes, got ${at}`);
      }
    }
    return starts;
  }

  #checkCount(at: number, key: string, expected: number): void {
    const elements = readSpan(this.#descriptor, this.#file, at, 8).readBigUInt64LE();
    if (elements !== BigInt(expected))
      throw storageError(this.#file, key, `expected ${expected} elements, got ${elements}`);
  }
}
