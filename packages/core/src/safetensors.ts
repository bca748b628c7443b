/**
 * The header of a safetensors file, read and written: 8 bytes of little-endian length, JSON, then the data section.
 * Headers are untrusted: all that the format demands is checked here, so that whoever reads data later only follows
 * spans that lie in the file. No tensor data is read here.
 * Format and checks: safetensors' README ("Format") and its reference reader: spans tile the data section, in any order
 * of names.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { DTYPES, type DType, dtypeOfSafetensors } from './dtype.js';
import { CheckpointError } from './errors.js';
import { JsonReader } from './json-reader.js';
import { formatDims } from './shape.js';

/** Longest header, as in the reference reader. */
export const MAX_HEADER_BYTES = 100_000_000;
/** Most dimensions of a tensor. */
export const MAX_RANK = 8;
/** Most tensors of a checkpoint, all files together. */
export const MAX_TENSORS = 10_000_000;

/**
 * Bits of the format's dtypes that metashard does not compute with; others are unknown and their spans cannot be
 * checked against the shape.
 */
const OTHER_DTYPE_BITS = new Map(
  Object.entries({
    F64: 64,
    I16: 16,
    U16: 16,
    U32: 32,
    U64: 64,
    C64: 64,
    F8_E5M2: 8,
    F8_E4M3: 8,
    F8_E8M0: 8,
    F8_E4M3FNUZ: 8,
    F8_E5M2FNUZ: 8,
    F6_E2M3: 6,
    F6_E3M2: 6,
    F4: 4,
  }),
);

/** A tensor as the header describes it. */
export interface HeaderEntry {
  /** null: a dtype metashard does not have (`storedDtype` names it); the tensor cannot be read. */
  readonly dtype: DType | null;
  /** The header's word: F32, BF16, F8_E4M3, … */
  readonly storedDtype: string;
  readonly shape: readonly number[];
  /** Bytes from the start of the data section. */
  readonly begin: number;
  readonly nbytes: number;
}

export interface SafetensorsHeader {
  /** Bytes of the whole file. */
  readonly fileBytes: number;
  /** Where the data section starts in the file. */
  readonly dataStart: number;
  /** In the order of the header. */
  readonly tensors: ReadonlyMap<string, HeaderEntry>;
  /** `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>;
}

const oneLine = (text: string): string => text.replace(/\p{Cc}/gu, '?');

/** The CheckpointError of a file and, where one is meant, of a tensor. `what` reads `expected …, got …`. */
export function checkpointError(
  file: string,
  tensor: string | undefined,
  what: string,
  { code, hint, cause }: { code?: string; hint?: string | undefined; cause?: unknown } = {},
): CheckpointError {
  const name = tensor === undefined || tensor.length <= 200 ? tensor : `${tensor.slice(0, 200)}…`;
  const where = name === undefined ? oneLine(file) : `${oneLine(file)}: tensor ${JSON.stringify(name)}`;
  const details = name === undefined ? { file } : { file, tensor: name };
  return new CheckpointError(`${where}: ${what}`, { ...(code === undefined ? {} : { code }), hint, cause, details });
}

/**
 * Reads and checks the header of a file. Throws CheckpointError (details: file, tensor) for anything that is not a
 * whole, consistent safetensors file. Takes no more time and memory than the header's length, at most MAX_HEADER_BYTES,
 * calls for.
 */
export function readSafetensorsHeader(file: string): SafetensorsHeader {
  return withFile(file, (descriptor, fileBytes) => {
    if (fileBytes < 8) throw checkpointError(file, undefined, `expected at least 8 bytes, got ${fileBytes}`);
    const length = readSpan(descriptor, file, 0, 8).readBigUInt64LE();
    if (length > MAX_HEADER_BYTES) {
      throw checkpointError(file, undefined, `expected a header of at most ${MAX_HEADER_BYTES} bytes, got ${length}`);
    }
    const headerBytes = Number(length);
    const dataStart = 8 + headerBytes;
    if (dataStart > fileBytes) {
      const rest = fileBytes - 8;
      throw checkpointError(file, undefined, `expected a header within ${rest} bytes, got a length of ${headerBytes}`);
    }
    const bytes = readSpan(descriptor, file, 8, headerBytes);
    return { fileBytes, dataStart, ...parseSafetensorsHeader(bytes, fileBytes - dataStart, file) };
  });
}

/** Opens a regular file (never waiting for a pipe), and closes it after `use`. I/O errors become CheckpointErrors. */
export function withFile<T>(file: string, use: (descriptor: number, fileBytes: number) => T): T {
  let descriptor: number | undefined;
  try {
    descriptor = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK);
    const stat = fstatSync(descriptor);
    if (!stat.isFile()) throw checkpointError(file, undefined, 'expected a file, got something else');
    return use(descriptor, stat.size);
  } catch (error) {
    throw fileError(file, error);
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

/** A failure of the file system as a CheckpointError that names the file; other errors as they are. */
export function fileError(file: string, error: unknown, use: 'read' | 'write' = 'read'): unknown {
  const code = (error as NodeJS.ErrnoException).code;
  if (error instanceof CheckpointError || typeof code !== 'string' || !('syscall' in (error as object))) return error;
  const got = code === 'ENOENT' ? 'no such file' : code;
  return checkpointError(file, undefined, `expected a file to ${use}, got ${got}`, { cause: error });
}

/** Reads exactly `length` bytes. */
export function readSpan(descriptor: number, file: string, position: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  for (let done = 0; done < length; ) {
    const count = readSync(descriptor, bytes, done, length - done, position + done);
    if (count === 0) {
      throw checkpointError(
        file,
        undefined,
        `expected ${length} bytes at ${position}, got ${done}: the file was cut short`,
      );
    }
    done += count;
  }
  return bytes;
}

/** Text of UTF-8 bytes; anything else is an error, a byte order mark stays and is one later. */
export function decodeUtf8(bytes: Uint8Array, file: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw checkpointError(file, undefined, 'expected a header in UTF-8, got other bytes');
  }
}

/**
 * Parses and checks a header whose data section has `dataBytes` bytes; `file` goes into errors. Throws CheckpointError.
 */
export function parseSafetensorsHeader(
  header: Uint8Array,
  dataBytes: number,
  file: string,
): Pick<SafetensorsHeader, 'tensors' | 'metadata'> {
  const tensors = new Map<string, HeaderEntry>();
  const metadata = new Map<string, string>();
  let tensor: string | undefined;
  const reader = new JsonReader(decodeUtf8(header, file), (what) => checkpointError(file, tensor, `header: ${what}`));
  reader.object((name) => {
    if (name === '__metadata__') {
      reader.object((key) => metadata.set(key, reader.string()));
      return;
    }
    tensor = name;
    if (tensors.size >= MAX_TENSORS) {
      throw checkpointError(file, name, `expected at most ${MAX_TENSORS} tensors, got more`);
    }
    tensors.set(name, readEntry(reader, file, name));
    tensor = undefined;
  });
  reader.end();
  checkTiling(tensors, dataBytes, file);
  return { tensors, metadata };
}

/** `{"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}`, in any order, nothing else in it. */
function readEntry(reader: JsonReader, file: string, name: string): HeaderEntry {
  let storedDtype: string | undefined;
  let shape: number[] | undefined;
  let span: number[] | undefined;
  reader.object((key) => {
    if (key === 'dtype') storedDtype = reader.string();
    else if (key === 'shape') shape = readIntegers(reader, file, name, 'dimensions', MAX_RANK);
    else if (key === 'data_offsets') span = readIntegers(reader, file, name, 'data_offsets', 2);
    else
      throw checkpointError(
        file,
        name,
        `expected dtype, shape and data_offsets, got ${JSON.stringify(key.slice(0, 40))}`,
      );
  });
  const missing = storedDtype === undefined ? 'dtype' : shape === undefined ? 'shape' : 'data_offsets';
  if (storedDtype === undefined || shape === undefined || span === undefined) {
    throw checkpointError(file, name, `expected dtype, shape and data_offsets, got no ${missing}`);
  }
  const [begin, end] = span;
  if (begin === undefined || end === undefined || end < begin) {
    throw checkpointError(file, name, `expected data_offsets [begin, end], got ${formatDims(span)}`);
  }
  const entry = { dtype: dtypeOfSafetensors(storedDtype) ?? null, storedDtype, shape, begin, nbytes: end - begin };
  checkSize(entry, file, name);
  return entry;
}

function readIntegers(reader: JsonReader, file: string, name: string, what: string, most: number): number[] {
  const values: number[] = [];
  reader.array(() => {
    if (values.length === most) throw checkpointError(file, name, `expected at most ${most} ${what}, got more`);
    values.push(reader.integer());
  });
  return values;
}

/** shape × dtype = span. */
function checkSize(entry: HeaderEntry, file: string, name: string): void {
  const { dtype, storedDtype, shape, nbytes } = entry;
  let elements = 1;
  for (const dim of shape) {
    elements *= dim;
    if (!Number.isSafeInteger(elements)) {
      throw checkpointError(file, name, `expected fewer than 2^53 elements, got shape ${formatDims(shape)}`);
    }
  }
  const bits = dtype === null ? OTHER_DTYPE_BITS.get(storedDtype) : DTYPES[dtype].bytes * 8;
  if (bits === undefined) return;
  const expected = (elements * bits) / 8;
  if (expected !== nbytes) {
    const spec = `${storedDtype} ${formatDims(shape)}`;
    throw checkpointError(file, name, `expected a span of ${expected} bytes for ${spec}, got ${nbytes}`);
  }
}

/**
 * Spans, in order, must follow each other from 0 to the end: no holes, no overlaps, nothing outside. Empty tensors take
 * no place.
 */
function checkTiling(tensors: ReadonlyMap<string, HeaderEntry>, dataBytes: number, file: string): void {
  const sorted = [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.nbytes - b.nbytes);
  let end = 0;
  for (const [name, { begin, nbytes }] of sorted) {
    const span = formatDims([begin, begin + nbytes]);
    if (begin + nbytes > dataBytes) {
      throw checkpointError(file, name, `expected data_offsets within ${dataBytes} bytes, got ${span}`, {
        hint: 'the file may be cut short: copy or download it again',
      });
    }
    if (begin !== end) {
      const fault = begin < end ? 'an overlap' : 'a hole';
      throw checkpointError(file, name, `expected data_offsets from ${end} on, got ${span}: ${fault}`);
    }
    end = begin + nbytes;
  }
  if (end !== dataBytes) {
    throw checkpointError(file, undefined, `expected tensors to cover ${dataBytes} bytes of data, got ${end}`);
  }
}

/** What a header written here says of a tensor. */
export interface WrittenEntry {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly nbytes: number;
}

/**
 * The file's first bytes, for tensors whose data follow in this order: length and JSON, padded with spaces so that data
 * start at a multiple of 8.
 */
export function encodeSafetensorsHeader(
  entries: readonly WrittenEntry[],
  metadata: ReadonlyMap<string, string>,
): Buffer {
  const members: string[] = [];
  if (metadata.size > 0) {
    const pairs = [...metadata].map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`);
    members.push(`"__metadata__":{${pairs.join(',')}}`);
  }
  let begin = 0;
  for (const { name, dtype, shape, nbytes } of entries) {
    const info = { dtype: DTYPES[dtype].safetensors, shape, data_offsets: [begin, begin + nbytes] };
    members.push(`${JSON.stringify(name)}:${JSON.stringify(info)}`);
    begin += nbytes;
  }
  const json = Buffer.from(`{${members.join(',')}}`);
  const header = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, ' ');
  header.writeBigUInt64LE(BigInt(header.length - 8));
  json.copy(header, 8);
  return header;
}
