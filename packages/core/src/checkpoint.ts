/**
 * A checkpoint on disk (safetensors or PyTorch) as an index: which tensors there are and where their bytes lie. Reads
 * headers only, never tensor data (that is `load-safetensors.ts` and the addon's `loadWeight`), and trusts nothing in
 * them.
 */
import { readdirSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { DType } from './dtype.js';
import { JsonReader } from './json-reader.js';
import { readTorchFile } from './pytorch/torch-checkpoint.js';
import {
  checkpointError,
  decodeUtf8,
  fileError,
  MAX_HEADER_BYTES,
  MAX_TENSORS,
  readSafetensorsHeader,
  readSpan,
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
  /** The file's own word for the dtype: F32, BF16, F8_E4M3, …; PyTorch's in its files: float32, float8_e4m3fn, … */
  readonly storedDtype: string;
  readonly shape: readonly number[];
  /**
   * In elements, for a tensor of a PyTorch file whose elements do not lie densely row by row; `offset` is its first
   * element, and `nbytes` counts the elements, not what they span. Absent for all others.
   */
  readonly strides?: readonly number[];
}

/** Plain data; survives structured clone. */
export interface CheckpointIndex {
  readonly folder: string;
  readonly format: 'safetensors' | 'pytorch';
  readonly files: readonly CheckpointFile[];
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  /**
   * `__metadata__` of all safetensors files, or what there is to say of PyTorch files: `pytorch.container` (zip or
   * legacy), `pytorch.state_dict` (the key the state dict was found under), `pytorch.ignored` (values that are no
   * tensors). The first file that has a key decides.
   */
  readonly metadata: ReadonlyMap<string, string>;
}

/** One file of a checkpoint; `file` of its tensors is its place in the index. */
interface OpenedFile {
  readonly bytes: number;
  readonly tensors: ReadonlyMap<string, Omit<CheckpointTensor, 'file'>>;
  readonly metadata: ReadonlyMap<string, string>;
}

/** File names, in the order they are looked for; a folder with safetensors is never read as PyTorch. */
const FORMATS = [
  {
    format: 'safetensors',
    named: ['model.safetensors', 'model.safetensors.index.json'],
    file: /\.safetensors$/,
    index: /\.safetensors\.index\.json$/,
  },
  {
    format: 'pytorch',
    named: ['pytorch_model.bin', 'pytorch_model.bin.index.json'],
    file: /\.(bin|pt|pth)$/,
    index: /\.(bin|pt|pth)\.index\.json$/,
  },
] as const;
type Format = (typeof FORMATS)[number];

/** What trainers put beside weights: never a checkpoint by itself. */
const NOT_WEIGHTS = /^(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)$/;
const OTHER_FORMATS = /\.(ckpt|pkl|gguf|h5|msgpack|onnx)(\.index\.json)?$/;

/**
 * Opens a checkpoint: a folder, one file, or an index file. In a folder `model.safetensors` is looked for, else
 * `model.safetensors.index.json` with its shards, else the only `*.safetensors`; then the same with `pytorch_model.bin`
 * and `*.bin`, `*.pt`, `*.pth`. Throws CheckpointError with `details: { file, tensor }`; code `checkpoint_format` where
 * there is a checkpoint of a format that is not read, `checkpoint_missing` where there is none.
 */
export async function openCheckpoint(folderOrFile: string): Promise<CheckpointIndex> {
  return openCheckpointSync(folderOrFile);
}

/** `openCheckpoint` for callers that cannot wait. */
export function openCheckpointSync(folderOrFile: string): CheckpointIndex {
  if (folderOrFile.includes('\0')) {
    throw checkpointError(folderOrFile, undefined, 'expected a path, got one with a zero character');
  }
  const [file, format] = findCheckpoint(folderOrFile);
  return format.index.test(file) ? openSharded(file, format) : openSingle(file, format);
}

/** The file or index to open. */
function findCheckpoint(folderOrFile: string): [file: string, format: Format] {
  const stat = statSync(folderOrFile, { throwIfNoEntry: false });
  if (stat === undefined) {
    throw checkpointError(folderOrFile, undefined, 'expected a folder or a checkpoint file, got no such file', {
      code: 'checkpoint_missing',
    });
  }
  if (!stat.isDirectory()) {
    const format = FORMATS.find(({ file, index }) => file.test(folderOrFile) || index.test(folderOrFile));
    if (format !== undefined) return [folderOrFile, format];
    throw noCheckpoint(folderOrFile, [basename(folderOrFile)]);
  }
  const names = readFolder(folderOrFile);
  for (const format of FORMATS) {
    const found = findInFolder(folderOrFile, names, format);
    if (found !== undefined) return [join(folderOrFile, found), format];
  }
  throw noCheckpoint(folderOrFile, names);
}

function readFolder(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch (error) {
    throw fileError(folder, error);
  }
}

/** The file of that format to open; undefined where the folder has none. */
function findInFolder(folder: string, names: readonly string[], { named, file }: Format): string | undefined {
  const only = names.filter((name) => file.test(name) && !NOT_WEIGHTS.test(name));
  const found = named.find((name) => names.includes(name)) ?? (only.length === 1 ? only[0] : undefined);
  if (found !== undefined || only.length === 0) return found;
  throw checkpointError(folder, undefined, `expected ${named.join(' or ')}, got ${only.slice(0, 5).join(', ')}`, {
    code: 'checkpoint_missing',
    hint: 'name the one file to open',
  });
}

function noCheckpoint(where: string, names: readonly string[]): Error {
  const other = names.find((name) => OTHER_FORMATS.test(name));
  if (other === undefined) {
    return checkpointError(where, undefined, 'expected a safetensors or PyTorch checkpoint, got none', {
      code: 'checkpoint_missing',
    });
  }
  return checkpointError(where, undefined, `expected safetensors or PyTorch, got ${other}: this format is not read`, {
    code: 'checkpoint_format',
    hint: 'convert the checkpoint to safetensors, or take a revision that has it',
  });
}

function openFile(path: string, { format }: Format): OpenedFile {
  if (format === 'safetensors') {
    const { fileBytes, dataStart, tensors, metadata } = readSafetensorsHeader(path);
    const entries = [...tensors].map(
      ([name, { begin, ...entry }]) => [name, { offset: dataStart + begin, ...entry }] as const,
    );
    return { bytes: fileBytes, tensors: new Map(entries), metadata };
  }
  const { fileBytes, tensors, metadata } = readTorchFile(path);
  const entries = [...tensors].map(([name, { dtype: torch, strides, ...entry }]) => {
    const { name: storedDtype, dtype } = torch;
    return [name, { ...entry, dtype, storedDtype, ...(strides === undefined ? {} : { strides }) }] as const;
  });
  return { bytes: fileBytes, tensors: new Map(entries), metadata };
}

function openSingle(path: string, format: Format): CheckpointIndex {
  const { bytes, tensors, metadata } = openFile(path, format);
  const numbered = new Map([...tensors].map(([name, entry]) => [name, { file: 0, ...entry }]));
  return { folder: dirname(path), format: format.format, files: [{ path, bytes }], tensors: numbered, metadata };
}

function openSharded(indexFile: string, format: Format): CheckpointIndex {
  const folder = dirname(indexFile);
  const shardOf = readWeightMap(indexFile);
  const shards = [...new Set(shardOf.values())].sort();
  const files: CheckpointFile[] = [];
  const tensors = new Map<string, CheckpointTensor>();
  const metadata = new Map<string, string>();
  for (const [file, shard] of shards.entries()) {
    const path = join(folder, shard);
    const opened = openFile(path, format);
    checkListed(opened, shard, path, shardOf, indexFile);
    files.push({ path, bytes: opened.bytes });
    for (const [name, entry] of opened.tensors) tensors.set(name, { file, ...entry });
    for (const [key, value] of opened.metadata) if (!metadata.has(key)) metadata.set(key, value);
  }
  for (const [name, shard] of shardOf) {
    if (!tensors.has(name)) {
      throw checkpointError(join(folder, shard), name, `expected it here as ${basename(indexFile)} says, got none`);
    }
  }
  return { folder, format: format.format, files, tensors, metadata };
}

/** Every tensor of a shard must be one that the index gives to this shard. */
function checkListed(
  opened: OpenedFile,
  shard: string,
  path: string,
  shardOf: ReadonlyMap<string, string>,
  indexFile: string,
): void {
  for (const name of opened.tensors.keys()) {
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
