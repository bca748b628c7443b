/**
 * The packed store: a model's weights as the CPU's kernels use them, in one file, in the order of use. Written once, then mapped and used in place: start-up
 * reads nothing, processes share the pages, and streaming from disk reads the same file. A store belongs to the exact files it was made from, to a layout and to
 * what is in 8 bits; one that does not match is not used.
 *
 * File: "MSPACKED", uint64 length of the JSON header, the header, zeros up to a page; then tensors, each at a multiple of 64 bytes, every block of the header's
 * `chunks` with its CRC-32.
 */
import { createHash } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, openSync, readSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import {
  CheckpointError,
  type CheckpointIndex,
  type DType,
  type Layout,
  type Program,
  roundUp,
  type TensorId,
} from '@metashard/core';
import { ALIGNMENT, PAGE_BYTES, storageOf, tensorBytes } from './program-facts.js';

export const STORE_MAGIC = 'MSPACKED';
/** Names the way bytes lie: backend.h's MS_PACKED_INT8, rows elsewhere. Another layout is packed anew, never misread. */
export const STORE_LAYOUT = 'vnni-16x64-v1';
export const STORE_VERSION = 1;
const CHUNK_BYTES = 64 * 2 ** 20;
const MOST_HEADER_BYTES = 64 * 2 ** 20;

export interface StoredTensor {
  /** Bytes from the start of the file. */
  offset: number;
  nbytes: number;
  dtype: DType;
  layout: Layout;
  dims: number[];
}

export interface StoreHeader {
  layout: string;
  version: number;
  /** The checkpoint's files when it was packed. */
  source: SourceFile[];
  tensors: Record<string, StoredTensor>;
  /** Bytes of the whole file. */
  bytes: number;
  dataOffset: number;
  /** CRC-32 of each CHUNK_BYTES of data. */
  checksums: number[];
}

export interface SourceFile {
  path: string;
  bytes: number;
  modifiedMs: number;
  /** SHA-256 of its first bytes, the header among them. */
  headHash: string;
}

/** What makes a checkpoint the one it was: path, size, time and first bytes of every file. */
export function sourceOf(checkpoint: CheckpointIndex): SourceFile[] {
  return checkpoint.files.map(({ path, bytes }) => {
    const head = Buffer.alloc(Math.min(bytes, 1 << 16));
    const descriptor = openSync(path, 'r');
    try {
      readSync(descriptor, head, 0, head.length, 0);
    } finally {
      closeSync(descriptor);
    }
    return {
      path,
      bytes,
      modifiedMs: statSync(path).mtimeMs,
      headHash: createHash('sha256').update(head).digest('hex'),
    };
  });
}

/** Where the tensors of a Program go in a store: in the order ops use them, so that a block is one range of the file. */
export function layOut(program: Program): { tensors: Map<TensorId, StoredTensor>; dataBytes: number } {
  const tensors = new Map<TensorId, StoredTensor>();
  let at = 0;
  const none = { tokens: 0, sequences: 0, outputs: 0 };
  for (const op of program.ops) {
    for (const input of op.inputs) {
      const id = storageOf(program, input);
      const tensor = program.tensors[id];
      if (tensor?.kind !== 'weight' || tensors.has(id)) continue;
      const nbytes = tensorBytes(tensor, none);
      tensors.set(id, {
        offset: at,
        nbytes,
        dtype: tensor.dtype,
        layout: tensor.layout,
        dims: [...tensor.dims] as number[],
      });
      at += roundUp(nbytes, ALIGNMENT);
    }
  }
  return { tensors, dataBytes: at };
}

/** Name of a store that would hold this Program's weights from these files; another layout, dtype or file gives another name. */
export function storeName(program: Program, source: readonly SourceFile[]): string {
  const hash = createHash('sha256').update(JSON.stringify([STORE_LAYOUT, STORE_VERSION, source]));
  for (const [id, tensor] of layOut(program).tensors) hash.update(JSON.stringify([program.tensors[id]?.name, tensor]));
  return `${hash.digest('hex').slice(0, 32)}.metashard`;
}

/** The folder stores lie in: `offloadFolder`, else METASHARD_CACHE, else the user's cache folder. */
export function storeFolder(offloadFolder?: string): string {
  if (offloadFolder !== undefined) return offloadFolder;
  return process.env.METASHARD_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'metashard');
}

export function ensureStoreFolder(folder: string): void {
  mkdirSync(folder, { recursive: true });
}

/** Header bytes up to the first page of data. */
export function encodeStoreHeader(
  header: Omit<StoreHeader, 'dataOffset' | 'bytes'>,
  dataBytes: number,
): { bytes: Buffer; header: StoreHeader } {
  const reserve = Buffer.byteLength(JSON.stringify(header)) + Math.ceil(dataBytes / CHUNK_BYTES) * 12 + 256;
  const dataOffset = roundUp(16 + reserve, PAGE_BYTES);
  const tensors = Object.fromEntries(
    Object.entries(header.tensors).map(([name, one]) => [name, { ...one, offset: one.offset + dataOffset }]),
  );
  const complete: StoreHeader = { ...header, tensors, dataOffset, bytes: dataOffset + dataBytes };
  return { bytes: storeHeaderBytes(complete), header: complete };
}

/** The same header again, say with its checksums; it keeps its size. */
export function storeHeaderBytes(header: StoreHeader): Buffer {
  const json = Buffer.from(JSON.stringify(header));
  if (16 + json.length > header.dataOffset) throw new CheckpointError('packed store: its header outgrew its place');
  const bytes = Buffer.alloc(header.dataOffset);
  bytes.write(STORE_MAGIC, 0, 'latin1');
  bytes.writeBigUInt64LE(BigInt(json.length), 8);
  json.copy(bytes, 16);
  return bytes;
}

/**
 * Opens a store for this Program and source; null where there is none, it is of other files or another layout, or a tensor does not lie exactly where `layOut` puts
 * it. Throws CheckpointError for a file that says it is this store and is broken (cut short, header not readable).
 */
export function openStore(file: string, program: Program, source: readonly SourceFile[]): StoreHeader | null {
  if (!existsSync(file)) return null;
  const header = readStoreHeader(file);
  if (header.layout !== STORE_LAYOUT || header.version !== STORE_VERSION) return null;
  if (JSON.stringify(header.source) !== JSON.stringify(source)) return null;
  const { tensors, dataBytes } = layOut(program);
  if (header.bytes !== header.dataOffset + dataBytes) return null;
  for (const [id, want] of tensors) {
    const got = header.tensors[program.tensors[id]?.name ?? ''];
    const expected: StoredTensor = { ...want, offset: want.offset + header.dataOffset };
    if (JSON.stringify(got) !== JSON.stringify(expected)) return null;
  }
  return header;
}

function readStoreHeader(file: string): StoreHeader {
  try {
    return parseStoreHeader(file);
  } catch (error) {
    if (!(error instanceof Error) || !('syscall' in error)) throw error;
    throw brokenStore(file, `cannot be read: ${error.message}`);
  }
}

const brokenStore = (file: string, what: string): CheckpointError =>
  new CheckpointError(`${file}: packed store: ${what}`, {
    hint: 'delete it; it is written again by metashard pack',
    details: { file },
  });

function parseStoreHeader(file: string): StoreHeader {
  const descriptor = openSync(file, 'r');
  try {
    const { size } = statSync(file);
    const start = Buffer.alloc(16);
    if (readSync(descriptor, start, 0, 16, 0) < 16 || start.toString('latin1', 0, 8) !== STORE_MAGIC)
      throw brokenStore(file, 'expected its first bytes to say so');
    const length = Number(start.readBigUInt64LE(8));
    if (length > MOST_HEADER_BYTES || 16 + length > size)
      throw brokenStore(file, `expected a header within its ${size} bytes, got ${length}`);
    const json = Buffer.alloc(length);
    readSync(descriptor, json, 0, length, 16);
    let header: unknown;
    try {
      header = JSON.parse(json.toString());
    } catch (cause) {
      // V8 quotes what it could not read, line ends too.
      throw brokenStore(file, `expected JSON, got ${(cause as Error).message.replace(/\s+/g, ' ')}`);
    }
    checkHeader(file, header, size, length);
    return header;
  } finally {
    closeSync(descriptor);
  }
}

/** What every reader of a header relies on; where tensors lie is openStore's to compare. */
function checkHeader(file: string, header: unknown, size: number, length: number): asserts header is StoreHeader {
  const isTable = (value: unknown): value is object =>
    typeof value === 'object' && value !== null && !Array.isArray(value);
  if (!isTable(header)) throw brokenStore(file, 'expected a header with a table of tensors');
  const { tensors, bytes, dataOffset, checksums } = header as Partial<StoreHeader>;
  if (!isTable(tensors) || !Number.isSafeInteger(bytes))
    throw brokenStore(file, 'expected a header with a table of tensors');
  if (bytes !== size)
    throw brokenStore(
      file,
      `expected ${bytes} bytes, got ${size}: it is ${size < Number(bytes) ? 'cut short' : 'too long'}`,
    );
  const placed = Number.isSafeInteger(dataOffset) && Number(dataOffset) % PAGE_BYTES === 0;
  if (!placed || Number(dataOffset) < 16 + length || Number(dataOffset) > size)
    throw brokenStore(file, `expected data from a page after its header, got offset ${JSON.stringify(dataOffset)}`);
  if (!Array.isArray(checksums) || checksums.length !== Math.ceil((size - Number(dataOffset)) / CHUNK_BYTES))
    throw brokenStore(file, `expected a checksum for every ${CHUNK_BYTES} bytes of data`);
}

/** Compares the CRC-32 of every chunk of the data; throws CheckpointError at the first that differs. Reads the whole file. */
export function checkStore(file: string): void {
  const header = readStoreHeader(file);
  const found = checksumsOf(file, header);
  const at = found.findIndex((crc, i) => crc !== header.checksums[i]);
  if (at < 0) return;
  throw new CheckpointError(
    `${file}: packed store: checksum of chunk ${at} differs: the file was changed or its disk failed`,
    {
      hint: 'delete it and pack the model again',
      details: { file },
    },
  );
}

export function checksumsOf(file: string, header: StoreHeader): number[] {
  const descriptor = openSync(file, 'r');
  const chunk = Buffer.alloc(Math.min(CHUNK_BYTES, Math.max(1, header.bytes - header.dataOffset)));
  const found: number[] = [];
  try {
    for (let at = header.dataOffset; at < header.bytes; at += CHUNK_BYTES) {
      const length = Math.min(CHUNK_BYTES, header.bytes - at);
      for (let done = 0; done < length; ) {
        const got = readSync(descriptor, chunk, done, length - done, at + done);
        if (got === 0)
          throw new CheckpointError(`${file}: packed store: expected ${header.bytes} bytes, got ${at + done}`);
        done += got;
      }
      found.push(crc32(chunk.subarray(0, length)));
    }
  } finally {
    closeSync(descriptor);
  }
  return found;
}
