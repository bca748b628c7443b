/**
 * A checkpoint on disk as an index: which tensors there are and where their bytes lie. Reads headers only, never tensor
 * data (that is `load-safetensors.ts` and the addon's `loadWeight`), and trusts nothing in them.
 */
import { readdirSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { DType } from './dtype.js';
import { JsonReader } from './json-reader.js';
import {
  checkpointError,
  decodeUtf8,
  fileError,
  MAX_HEADER_BYTES,
  MAX_TENSORS,
  readSafetensorsHeader,
  readSpan,
  type SafetensorsHeader,
  withFile,
} from './safetensors.js';

export interface CheckpointFile {
  readonly path: string;
  readonly bytes: number;
}

/** Where one tensor lies. */
export interface CheckpointTensor {
  /** Index in `files`. */
  readonly file: number;
  /** Bytes from the start of the file. */
  readonly offset: number;
  readonly nbytes: number;
  /** null: a dtype metashard does not have (`storedDtype` names it); using the tensor is an error. */
  readonly dtype: DType | null;
  /** The file's own word for the dtype: F32, BF16, F8_E4M3, … */
  readonly storedDtype: string;
  readonly shape: readonly number[];
}

/** Plain data; survives structured clone. */
export interface CheckpointIndex {
  readonly folder: string;
  readonly format: 'safetensors';
  readonly files: readonly CheckpointFile[];
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  /** `__metadata__` of all files; the first file that has a key decides. */
  readonly metadata: ReadonlyMap<string, string>;
}

const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const OTHER_FORMATS = /\.(bin|pt|pth|ckpt|pkl|gguf|h5|msgpack|onnx)(\.index\.json)?$/;

/**
 * Opens a checkpoint: a folder (`model.safetensors`, else `model.safetensors.index.json` with its shards, else the only
 * `*.safetensors`), one safetensors file, or an index file. Throws CheckpointError with `details: { file, tensor }`;
 * code `checkpoint_format` where there is a checkpoint of a format that is not read yet, `checkpoint_missing` where
 * there is none.
 */
export async function openCheckpoint(folderOrFile: string): Promise<CheckpointIndex> {
  return openCheckpointSync(folderOrFile);
}

/** `openCheckpoint` for callers that cannot wait. */
export function openCheckpointSync(folderOrFile: string): CheckpointIndex {
  if (folderOrFile.includes('\0')) {
    throw checkpointError(folderOrFile, undefined, 'expected a path, got one with a zero character');
  }
  const file = findCheckpoint(folderOrFile);
  const folder = dirname(file);
  return file.endsWith('.index.json') ? openSharded(folder, file) : openSingle(folder, file);
}

/** The safetensors file or index to open. */
function findCheckpoint(folderOrFile: string): string {
  const stat = statSync(folderOrFile, { throwIfNoEntry: false });
  if (stat === undefined) {
    throw checkpointError(folderOrFile, undefined, 'expected a folder or a safetensors file, got no such file', {
      code: 'checkpoint_missing',
    });
  }
  if (!stat.isDirectory()) {
    if (/\.safetensors(\.index\.json)?$/.test(folderOrFile)) return folderOrFile;
    throw noSafetensors(folderOrFile, [basename(folderOrFile)]);
  }
  const names = readFolder(folderOrFile);
  const only = names.filter((name) => name.endsWith('.safetensors'));
  const found = [SINGLE, INDEX].find((name) => names.includes(name)) ?? (only.length === 1 ? only[0] : undefined);
  if (found !== undefined) return join(folderOrFile, found);
  if (only.length > 1) {
    throw checkpointError(
      folderOrFile,
      undefined,
      `expected ${SINGLE} or ${INDEX}, got ${only.slice(0, 5).join(', ')}`,
      {
        code: 'checkpoint_missing',
        hint: 'name the one file to open',
      },
    );
  }
  throw noSafetensors(folderOrFile, names);
}

function readFolder(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch (error) {
    throw fileError(folder, error);
  }
}

function noSafetensors(where: string, names: readonly string[]): Error {
  const other = names.find((name) => OTHER_FORMATS.test(name));
  if (other === undefined) {
    return checkpointError(where, undefined, 'expected a safetensors checkpoint, got none', {
      code: 'checkpoint_missing',
    });
  }
  return checkpointError(where, undefined, `expected safetensors, got ${other}: this format is not read yet`, {
    code: 'checkpoint_format',
    hint: 'convert the checkpoint to safetensors, or take a revision that has it',
  });
}

function openSingle(folder: string, file: string): CheckpointIndex {
  const header = readSafetensorsHeader(file);
  const tensors = new Map<string, CheckpointTensor>();
  addTensors(tensors, header, 0);
  return {
    folder,
    format: 'safetensors',
    files: [{ path: file, bytes: header.fileBytes }],
    tensors,
    metadata: header.metadata,
  };
}

function addTensors(tensors: Map<string, CheckpointTensor>, header: SafetensorsHeader, file: number): void {
  for (const [name, { begin, nbytes, dtype, storedDtype, shape }] of header.tensors) {
    tensors.set(name, { file, offset: header.dataStart + begin, nbytes, dtype, storedDtype, shape });
  }
}

function openSharded(folder: string, indexFile: string): CheckpointIndex {
  const shardOf = readWeightMap(indexFile);
  const shards = [...new Set(shardOf.values())].sort();
  const files: CheckpointFile[] = [];
  const tensors = new Map<string, CheckpointTensor>();
  const metadata = new Map<string, string>();
  for (const [number, shard] of shards.entries()) {
    const path = join(folder, shard);
    const header = readSafetensorsHeader(path);
    checkListed(header, shard, path, shardOf, indexFile);
    files.push({ path, bytes: header.fileBytes });
    addTensors(tensors, header, number);
    for (const [key, value] of header.metadata) if (!metadata.has(key)) metadata.set(key, value);
  }
  for (const [name, shard] of shardOf) {
    if (!tensors.has(name)) {
      throw checkpointError(join(folder, shard), name, `expected it here as ${basename(indexFile)} says, got none`);
    }
  }
  return { folder, format: 'safetensors', files, tensors, metadata };
}

/** Every tensor of a shard must be one that the index gives to this shard. */
function checkListed(
  header: SafetensorsHeader,
  shard: string,
  path: string,
  shardOf: ReadonlyMap<string, string>,
  indexFile: string,
): void {
  for (const name of header.tensors.keys()) {
    const listed = shardOf.get(name);
    if (listed !== shard) {
      const got = listed === undefined ? 'nothing' : JSON.stringify(listed);
      throw checkpointError(path, name, `expected ${basename(indexFile)} to name this shard, got ${got}`);
    }
  }
}

/**
 * `weight_map` of an index file: tensor → shard. Other keys (`metadata`, whose `total_size` writers disagree about) are
 * not used.
 */
function readWeightMap(indexFile: string): Map<string, string> {
  const bytes = withFile(indexFile, (descriptor, fileBytes) => {
    if (fileBytes > MAX_HEADER_BYTES) {
      throw checkpointError(indexFile, undefined, `expected at most ${MAX_HEADER_BYTES} bytes, got ${fileBytes}`);
    }
    return readSpan(descriptor, indexFile, 0, fileBytes);
  });
  let shardOf: Map<string, string> | undefined;
  const reader = new JsonReader(decodeUtf8(bytes, indexFile), (what) => checkpointError(indexFile, undefined, what));
  reader.object((key) => {
    if (key === 'weight_map') shardOf = readShardNames(reader, indexFile);
    else reader.skip();
  });
  reader.end();
  if (shardOf === undefined || shardOf.size === 0) {
    throw checkpointError(indexFile, undefined, 'expected a weight_map with tensors, got none');
  }
  return shardOf;
}

function readShardNames(reader: JsonReader, indexFile: string): Map<string, string> {
  const shardOf = new Map<string, string>();
  reader.object((name) => {
    const shard = reader.string();
    if (!staysInFolder(shard)) {
      throw checkpointError(
        indexFile,
        name,
        `expected a shard inside the folder, got ${JSON.stringify(shard.slice(0, 200))}`,
      );
    }
    shardOf.set(name, shard);
    if (shardOf.size > MAX_TENSORS) {
      throw checkpointError(indexFile, name, `expected at most ${MAX_TENSORS} tensors, got more`);
    }
  });
  return shardOf;
}

/**
 * A relative name without `.`, `..` and empty components. Where a link of that name points to is the folder's business:
 * caches are made of links.
 */
function staysInFolder(shard: string): boolean {
  if (shard.length > 4096 || /[\0\\]/.test(shard) || /^[a-zA-Z]:/.test(shard)) return false;
  return shard.split('/').every((part) => part !== '' && part !== '.' && part !== '..');
}
