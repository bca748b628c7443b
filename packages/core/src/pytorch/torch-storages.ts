/**
 * The storages a pickle refers to by persistent ids. Where their bytes lie is found out by whoever opened the file: a
 * record of the archive, or the sections after a legacy pickle.
 */
import {
  type Fail,
  PickleTuple,
  type PickleValue,
  TorchGlobal,
  TorchStorage,
  typeName,
  wholeNumber,
} from './pickle-values.js';

/** Longest key of a storage: a small number, or a memory address in old files. */
const MAX_KEY_LENGTH = 64;

export class TorchStorages {
  /** Every whole storage, once. */
  readonly byKey = new Map<string, TorchStorage>();

  /** Ids of legacy files have a sixth item: None, or which part of the storage is meant. */
  constructor(readonly legacy: boolean) {}

  /** The storage of a persistent id: ('storage', type, key, location, number of elements[, part]). */
  find(id: PickleValue, fail: Fail): TorchStorage {
    const items = id instanceof PickleTuple ? id.items : [];
    const [word, type, key, location, count, part = null] = items;
    if (items.length !== (this.legacy ? 6 : 5) || word !== 'storage') {
      throw fail('expected the persistent id of a storage, got another one');
    }
    if (!(type instanceof TorchGlobal) || type.role !== 'storage' || type.dtype === undefined) {
      throw fail(`expected a typed storage in a persistent id, got ${typeName(type)}`);
    }
    if (typeof key !== 'string' || key.length === 0 || key.length > MAX_KEY_LENGTH) {
      throw fail(`expected a storage key of 1 to ${MAX_KEY_LENGTH} characters, got another ${typeName(key)}`);
    }
    if (typeof location !== 'string') throw fail(`expected the location of a storage, got ${typeName(location)}`);
    const nbytes = wholeNumber(count, 'a number of elements', fail) * type.dtype.bytes;
    if (!Number.isSafeInteger(nbytes)) throw fail(`expected a storage of less than 2^53 bytes, got ${nbytes}`);
    const whole = this.#remember(new TorchStorage(key, type.dtype, 0, nbytes), fail);
    return part === null ? whole : partOf(whole, part, fail);
  }

  #remember(storage: TorchStorage, fail: Fail): TorchStorage {
    const known = this.byKey.get(storage.key);
    if (known === undefined) {
      this.byKey.set(storage.key, storage);
      return storage;
    }
    if (known.nbytes === storage.nbytes && known.dtype === storage.dtype) return known;
    throw fail(`expected one type and size of storage ${JSON.stringify(storage.key)}, got two`);
  }
}

/** (key of the part, offset, number of elements), as PyTorch before 0.4 writes. */
function partOf(storage: TorchStorage, part: PickleValue, fail: Fail): TorchStorage {
  if (!(part instanceof PickleTuple) || part.items.length !== 3) {
    throw fail(`expected a part of a storage as (key, offset, size), got ${typeName(part)}`);
  }
  const byteOffset = wholeNumber(part.items[1], 'an offset', fail) * storage.dtype.bytes;
  const nbytes = wholeNumber(part.items[2], 'a number of elements', fail) * storage.dtype.bytes;
  if (!(byteOffset + nbytes <= storage.nbytes)) {
    throw fail(`expected a part within ${storage.nbytes} bytes of a storage, got ${byteOffset} + ${nbytes} bytes`);
  }
  return new TorchStorage(storage.key, storage.dtype, byteOffset, nbytes);
}
