/**
 * A file of `torch.save` as an index: which tensors its state dict has and where their bytes lie. Two containers: zip
 * (PyTorch 1.6 and later: `data.pkl`, one record per storage) and legacy (five pickles, then the storages one after
 * another). Reads no tensor data and runs nothing.
 * Format: `torch/serialization.py` of PyTorch 2.13, `_save` and `_load`.
 */
import { checkpointError, readSpan, withFile } from '../safetensors.js';
import { openLegacy } from './legacy.js';
import { MAX_PICKLE_BYTES, PickleInput } from './pickle-input.js';
import type { PickleValue, TorchTensor } from './pickle-values.js';
import { readStateDict } from './state-dict.js';
import { TorchStorages } from './torch-storages.js';
import { unpickle } from './unpickler.js';
import { readZipRecords, type ZipRecord } from './zip.js';

/** A tensor of the file. */
export interface TorchEntry extends Pick<TorchTensor, 'nbytes' | 'shape' | 'strides'> {
  readonly dtype: TorchTensor['dtype'];
  /** First element, in bytes from the start of the file. */
  readonly offset: number;
}

export interface TorchFile {
  readonly fileBytes: number;
  /** In the order of the state dict. */
  readonly tensors: ReadonlyMap<string, TorchEntry>;
  /** `pytorch.container` (zip or legacy), and what `readStateDict` says. */
  readonly metadata: ReadonlyMap<string, string>;
}

/** What a container holds. */
export interface Container {
  readonly kind: 'zip' | 'legacy';
  readonly value: PickleValue;
  /** Where a storage's bytes start in the file. Throws where they are missing or of another size. */
  readonly locate: (storage: TorchTensor['storage']) => number;
}

const ZIP_MAGIC = 0x04034b50;
const PICKLE_PROTOCOL = 0x80;
/** Newest `version` record that PyTorch 2.13 reads. */
const MAX_VERSION = 10;
const SAVE_AGAIN = 'load the file in PyTorch and save it again: torch.save(torch.load(path), path)';

/**
 * Reads the description of every tensor of a `.bin`, `.pt` or `.pth` file. Throws CheckpointError (details: file,
 * tensor) for anything but tensors in a dict, or in one that a training script wrapped.
 */
export function readTorchFile(file: string): TorchFile {
  return withFile(file, (descriptor, fileBytes) => {
    const { kind, value, locate } = openContainer(descriptor, file, fileBytes);
    const { tensors: described, metadata } = readStateDict(value, file);
    const tensors = new Map<string, TorchEntry>();
    for (const [name, { storage, dtype, byteOffset, nbytes, shape, strides }] of described) {
      const offset = locate(storage) + storage.byteOffset + byteOffset;
      tensors.set(name, { offset, nbytes, dtype, shape, strides });
    }
    return { fileBytes, tensors, metadata: new Map([['pytorch.container', kind], ...metadata]) };
  });
}

function openContainer(descriptor: number, file: string, fileBytes: number): Container {
  if (fileBytes < 4) throw checkpointError(file, undefined, `expected at least 4 bytes, got ${fileBytes}`);
  const head = readSpan(descriptor, file, 0, Math.min(64, fileBytes));
  if (head.readUInt32LE(0) === ZIP_MAGIC) return openZip(descriptor, file, fileBytes);
  if (head[0] === PICKLE_PROTOCOL) return openLegacy(descriptor, file, fileBytes);
  const pointer = head.toString('latin1').startsWith('version https://git-lfs');
  throw checkpointError(
    file,
    undefined,
    `expected a file of torch.save, got ${pointer ? 'a Git LFS pointer' : 'other bytes'}`,
    {
      hint: pointer ? 'fetch the file itself: git lfs pull' : undefined,
    },
  );
}

function openZip(descriptor: number, file: string, fileBytes: number): Container {
  const records = readZipRecords(descriptor, file, fileBytes);
  const folder = findFolder(records, file);
  const text = (name: string): string | undefined => {
    const record = records.get(`${folder}/${name}`);
    if (record === undefined || record.nbytes > 64) return undefined;
    return readSpan(descriptor, file, record.offset, record.nbytes).toString('latin1').trim();
  };
  checkArchive(file, text);
  const { offset, nbytes } = records.get(`${folder}/data.pkl`) as ZipRecord;
  if (nbytes > MAX_PICKLE_BYTES) {
    throw checkpointError(file, undefined, `expected a data.pkl of at most ${MAX_PICKLE_BYTES} bytes, got ${nbytes}`);
  }
  const storages = new TorchStorages(false);
  const value = unpickle(new PickleInput(file, readSpan(descriptor, file, offset, nbytes)), storages);
  const locate = (storage: TorchTensor['storage']): number => {
    const name = `${folder}/data/${storage.key}`;
    const record = records.get(name);
    const whole = storages.byKey.get(storage.key)?.nbytes ?? 0;
    // A storage of bytes may end within an element of its dtype; torch writes it whole.
    if (record !== undefined && record.nbytes >= whole && record.nbytes < whole + storage.dtype.bytes)
      return record.offset;
    const got = record === undefined ? 'no such record' : `${record.nbytes} bytes`;
    throw checkpointError(file, undefined, `record ${JSON.stringify(name)}: expected ${whole} bytes, got ${got}`);
  };
  return { kind: 'zip', value, locate };
}

/** The folder that all records lie in: `archive`, or the name under which the file was saved. */
function findFolder(records: ReadonlyMap<string, ZipRecord>, file: string): string {
  const pickles = [...records.keys()].filter((name) => /^[^/]+\/data\.pkl$/.test(name));
  const [only] = pickles;
  if (pickles.length === 1 && only !== undefined) return only.slice(0, only.indexOf('/'));
  throw checkpointError(file, undefined, `expected an archive with one data.pkl, got ${pickles.length}`, {
    hint: 'is this a file of torch.save?',
  });
}

/** What the small records say: byte order and version. */
function checkArchive(file: string, text: (name: string) => string | undefined): void {
  const order = text('byteorder') ?? 'little'; // absent before PyTorch 2.1
  if (order !== 'little') {
    const got = JSON.stringify(order);
    throw checkpointError(file, undefined, `expected the byte order little, got ${got}`, { hint: SAVE_AGAIN });
  }
  const version = text('version') ?? text('.data/version') ?? '1';
  if (!/^[0-9]{1,4}$/.test(version) || Number(version) < 1 || Number(version) > MAX_VERSION) {
    const got = JSON.stringify(version);
    throw checkpointError(file, undefined, `expected archive version 1 to ${MAX_VERSION}, got ${got}`, {
      hint: SAVE_AGAIN,
    });
  }
}
