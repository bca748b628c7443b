/**
 * The storages a pickle refers to by persistent ids, each once. Where their bytes lie is found out by whoever opened the
 * file (a record of the archive, or the sections after a legacy pickle).
 */
import { PickleTuple, type PickleValue } from './pickle-values.js';
import { TorchGlobal } from './torch-globals.js';
import { type Fail, type TorchDtype, wholeNumber } from './torch-tensor.js';

/** Longest key of a storage: a small number, or a memory address in old files. */
const MAX_KEY_LENGTH = 64;

/** A storage, or a part of one (`byteOffset` from its start, in old files). */
export class TorchStorage {
  constructor(
    readonly key: string,
    readonly dtype: TorchDtype,
    readonly byteOffset: number,
    readonly nbytes: number,
  ) {}
}

/** Collects storages. `legacy` ids have a sixth item, which is None or says which part of the storage is meant. */
export class TorchStorages {
  readonly byKey = new Map<string, TorchStorage>();

  constructor(readonly legacy: boolean) {}

  /** The storage of a persistent id: ('storage', type, key, location, number of elements[, view]). */
  find(id: PickleValue, fail: Fail): TorchStorage {
    const items = id instanceof PickleTuple ? id.items : [];
    const [word, type, key, location, count, view = null] = items;
    if (items.length !== (this.legacy ? 6 : 5) || word !== 'storage') {
      throw fail('expected the persistent id of a storage, got another one');
    }
    if (!(type instanceof TorchGlobal) || type.role !== 'storage' || type.dtype === undefined) {
      throw fail('expected a typed storage in a persistent id, got something else');
    }
    if (typeof key !== 'string' || key.length === 0 || key.length > MAX_KEY_LENGTH) {
      throw fail(`expected a storage key of 1 to ${MAX_KEY_LENGTH} characters, got something else`);
    }
    if (typeof location !== 'string') throw fail('expected the location of a storage, got something else');
    const nbytes = wholeNumber(count, 'a number of elements', fail) * type.dtype.bytes;
    if (!Number.isSafeInteger(nbytes)) throw fail('expected a storage of less than 2^53 bytes, got more');
    const whole = this.#remember(new TorchStorage(key, type.dtype, 0, nbytes), fail);
    return view === null ? whole : partOf(whole, view, fail);
  }

  #remember(storage: TorchStorage, fail: Fail): TorchStorage {
    const known = this.byKey.get(storage.key);
    if (known === undefined) {
      this.byKey.set(storage.key, storage);
      return storage;
    }
    if (known.nbytes !== storage.nbytes || known.dtype !== storage.dtype) {
      throw fail(`expected one type and size of storage ${JSON.stringify(storage.key)}, got two`);
    }
    return known;
  }
}

/** (key of the part, offset, number of elements), as PyTorch before 0.4 writes. */
function partOf(storage: TorchStorage, view: PickleValue, fail: Fail): TorchStorage {
  if (!(view instanceof PickleTuple) || view.items.length !== 3) {
    throw fail('expected a part of a storage as (key, offset, size), got something else');
  }
  const byteOffset = wholeNumber(view.items[1], 'an offset', fail) * storage.dtype.bytes;
  const nbytes = wholeNumber(view.items[2], 'a number of elements', fail) * storage.dtype.bytes;
  if (!(byteOffset + nbytes <= storage.nbytes)) {
    throw fail(`expected a part within ${storage.nbytes} bytes of a storage, got ${byteOffset} + ${nbytes}`);
  }
  return new TorchStorage(storage.key, storage.dtype, byteOffset, nbytes);
}
