/**
 * The directory of a zip archive whose records are stored without compression, as `torch.save` writes them: where the
 * bytes of each record lie. Reads the directory and the local headers, never data; trusts nothing in them.
 * Format: PKWARE's APPNOTE 6.3, sections 4.3.6 to 4.3.16 and 4.5.3 (zip64).
 */
import { checkpointError, decodeUtf8, readSpan } from '../safetensors.js';

/** Where a record's bytes lie in the file. */
export interface ZipRecord {
  readonly offset: number;
  readonly nbytes: number;
}

/** An entry of the central directory. */
interface DirectoryEntry {
  readonly name: string;
  /** Where its local header starts. */
  readonly header: number;
  readonly nbytes: number;
}

interface Directory {
  readonly offset: number;
  readonly nbytes: number;
  readonly entries: number;
}

const LOCAL_HEADER = 0x04034b50;
const DIRECTORY_ENTRY = 0x02014b50;
const END = 0x06054b50;
const END_64 = 0x06064b50;
const LOCATOR_64 = 0x07064b50;
const LOCAL_BYTES = 30;
const ENTRY_BYTES = 46;
const END_BYTES = 22;
const END_64_BYTES = 56;
const LOCATOR_BYTES = 20;
/** Fields that say "see zip64". */
const FULL_16 = 0xffff;
const FULL_32 = 0xffffffff;

const MAX_COMMENT_BYTES = 65_535;
const MAX_DIRECTORY_BYTES = 100_000_000;
const MAX_RECORDS = 250_000;
const MAX_NAME_BYTES = 1024;

/**
 * All records of an archive by name. Throws CheckpointError for one that is damaged, compressed, encrypted or split,
 * has a name twice, or whose records overlap or lie outside the file.
 */
export function readZipRecords(descriptor: number, file: string, fileBytes: number): Map<string, ZipRecord> {
  return new ZipReader(descriptor, file, fileBytes).records();
}

class ZipReader {
  readonly #descriptor: number;
  readonly #file: string;
  readonly #fileBytes: number;

  constructor(descriptor: number, file: string, fileBytes: number) {
    this.#descriptor = descriptor;
    this.#file = file;
    this.#fileBytes = fileBytes;
  }

  records(): Map<string, ZipRecord> {
    const directory = this.#findDirectory();
    const entries = this.#readEntries(directory).sort((a, b) => a.header - b.header);
    const records = new Map<string, ZipRecord>();
    let end = 0;
    for (const entry of entries) {
      if (entry.header < end)
        throw this.#fail(`record ${quote(entry.name)}: expected it after byte ${end}, got an overlap`);
      const offset = this.#dataOffset(entry, directory.offset);
      end = offset + entry.nbytes;
      if (!(end <= directory.offset)) {
        throw this.#fail(
          `record ${quote(entry.name)}: expected it before byte ${directory.offset}, got an end at ${end}`,
        );
      }
      if (records.has(entry.name)) throw this.#fail(`expected every record once, got ${quote(entry.name)} twice`);
      records.set(entry.name, { offset, nbytes: entry.nbytes });
    }
    return records;
  }

  #fail(what: string, hint?: string): Error {
    return checkpointError(this.#file, undefined, `zip: ${what}`, { hint });
  }

  #read(position: number, length: number): Buffer {
    return readSpan(this.#descriptor, this.#file, position, length);
  }

  /** The end record lies last in the file, before a comment; the directory ends where it (or its zip64 twin) starts. */
  #findDirectory(): Directory {
    const tailBytes = Math.min(this.#fileBytes, END_BYTES + MAX_COMMENT_BYTES);
    const tail = this.#read(this.#fileBytes - tailBytes, tailBytes);
    let at = tail.length - END_BYTES;
    const isEnd = (): boolean =>
      tail.readUInt32LE(at) === END && at + END_BYTES + tail.readUInt16LE(at + 20) === tail.length;
    while (at >= 0 && !isEnd()) at--;
    if (at < 0) {
      throw this.#fail('expected an end record, got none', 'the file may be cut short: copy or download it again');
    }
    const end = tail.subarray(at, at + END_BYTES);
    const position = this.#fileBytes - tailBytes + at;
    const disks = [end.readUInt16LE(4), end.readUInt16LE(6), end.readUInt16LE(8) - end.readUInt16LE(10)];
    if (disks.some((one) => one !== 0)) throw this.#fail('expected an archive of one part, got several');
    const directory = { entries: end.readUInt16LE(10), nbytes: end.readUInt32LE(12), offset: end.readUInt32LE(16) };
    return this.#checkDirectory(...this.#widen(directory, position));
  }

  /** The zip64 end record's numbers in the place of those that did not fit; the others must agree. */
  #widen(narrow: Directory, endPosition: number): [directory: Directory, end: number] {
    const full = narrow.entries === FULL_16 || narrow.nbytes === FULL_32 || narrow.offset === FULL_32;
    const locator =
      endPosition >= LOCATOR_BYTES + END_64_BYTES ? this.#read(endPosition - LOCATOR_BYTES, LOCATOR_BYTES) : undefined;
    if (locator === undefined || locator.readUInt32LE(0) !== LOCATOR_64) {
      if (full) throw this.#fail('expected a zip64 end record, got none');
      return [narrow, endPosition];
    }
    const position = this.#uint64(locator, 8);
    const limit = endPosition - LOCATOR_BYTES;
    if (!(position + END_64_BYTES <= limit)) {
      throw this.#fail(`expected a zip64 end record before byte ${limit}, got one at ${position}`);
    }
    const end = this.#read(position, END_64_BYTES);
    if (end.readUInt32LE(0) !== END_64 || position + 12 + this.#uint64(end, 4) !== limit) {
      throw this.#fail(`expected a zip64 end record at byte ${position}, got other bytes`);
    }
    const wide = { entries: this.#uint64(end, 32), nbytes: this.#uint64(end, 40), offset: this.#uint64(end, 48) };
    const agrees =
      (narrow.entries === FULL_16 || narrow.entries === wide.entries) &&
      (narrow.nbytes === FULL_32 || narrow.nbytes === wide.nbytes) &&
      (narrow.offset === FULL_32 || narrow.offset === wide.offset);
    if (!agrees) throw this.#fail('expected the two end records to agree, got different numbers');
    return [wide, position];
  }

  #checkDirectory(directory: Directory, end: number): Directory {
    const { offset, nbytes, entries } = directory;
    if (entries > MAX_RECORDS || nbytes > MAX_DIRECTORY_BYTES) {
      throw this.#fail(`expected at most ${MAX_RECORDS} records, got ${entries} in ${nbytes} bytes`);
    }
    if (offset + nbytes !== end) {
      throw this.#fail(`expected a directory that ends at byte ${end}, got ${offset} + ${nbytes}`);
    }
    return directory;
  }

  #readEntries({ offset, nbytes, entries }: Directory): DirectoryEntry[] {
    const bytes = this.#read(offset, nbytes);
    const read: DirectoryEntry[] = [];
    let at = 0;
    for (let i = 0; i < entries; i++) {
      if (at + ENTRY_BYTES > nbytes || bytes.readUInt32LE(at) !== DIRECTORY_ENTRY) {
        throw this.#fail(`expected ${entries} records in the directory, got ${i}`);
      }
      const nameBytes = bytes.readUInt16LE(at + 28);
      const extraBytes = bytes.readUInt16LE(at + 30);
      const next = at + ENTRY_BYTES + nameBytes + extraBytes + bytes.readUInt16LE(at + 32);
      if (next > nbytes) throw this.#fail(`expected ${entries} records in the directory, got ${i} and a part of one`);
      if (nameBytes > MAX_NAME_BYTES)
        throw this.#fail(`expected a name of at most ${MAX_NAME_BYTES} bytes, got ${nameBytes}`);
      read.push(this.#readEntry(bytes.subarray(at, next), nameBytes, extraBytes));
      at = next;
    }
    if (at !== nbytes) throw this.#fail(`expected a directory of ${nbytes} bytes, got records of ${at}`);
    return read;
  }

  #readEntry(bytes: Buffer, nameBytes: number, extraBytes: number): DirectoryEntry {
    const name = decodeUtf8(bytes.subarray(ENTRY_BYTES, ENTRY_BYTES + nameBytes), this.#file);
    this.#checkStored(name, bytes.readUInt16LE(8), bytes.readUInt16LE(10));
    const extra = bytes.subarray(ENTRY_BYTES + nameBytes, ENTRY_BYTES + nameBytes + extraBytes);
    const narrow = [bytes.readUInt32LE(24), bytes.readUInt32LE(20), bytes.readUInt32LE(42)];
    const [nbytes, storedBytes, header] = this.#widenEntry(name, narrow, extra) as [number, number, number];
    if (storedBytes !== nbytes) {
      throw this.#fail(`record ${quote(name)}: expected ${nbytes} stored bytes, got ${storedBytes}`);
    }
    const disk = bytes.readUInt16LE(34);
    if (disk !== 0 && disk !== FULL_16) throw this.#fail('expected an archive of one part, got several');
    return { name, header, nbytes };
  }

  #checkStored(name: string, flags: number, method: number): void {
    if ((flags & 0x2041) !== 0) throw this.#fail(`record ${quote(name)}: expected plain data, got an encrypted record`);
    if (method === 0) return;
    const got = `compression method ${method}${method === 8 ? ' (deflate)' : ''}`;
    throw this.#fail(
      `record ${quote(name)}: expected data stored without compression, as torch.save writes, got ${got}`,
      name.includes('/code/')
        ? 'this is a TorchScript program: save torch.jit.load(path).state_dict() instead'
        : 'load the file in PyTorch and save it again, or repack it with `zip -0`',
    );
  }

  /** Fields that did not fit come from the zip64 extra field, in their order (APPNOTE 4.5.3). */
  #widenEntry(name: string, fields: readonly number[], extra: Buffer): number[] {
    if (!fields.includes(FULL_32)) return [...fields];
    for (let at = 0; at + 4 <= extra.length; at += 4 + extra.readUInt16LE(at + 2)) {
      if (extra.readUInt16LE(at) !== 1) continue;
      let value = at + 4;
      const end = value + extra.readUInt16LE(at + 2);
      return fields.map((field) => {
        if (field !== FULL_32) return field;
        value += 8;
        if (value > end || end > extra.length)
          throw this.#fail(`record ${quote(name)}: expected zip64 sizes, got a part`);
        return this.#uint64(extra, value - 8);
      });
    }
    throw this.#fail(`record ${quote(name)}: expected zip64 sizes, got none`);
  }

  /** Where the data start, as the record's own header says, which must agree with the directory. */
  #dataOffset({ name, header }: DirectoryEntry, limit: number): number {
    const nameBytes = Buffer.from(name);
    const length = LOCAL_BYTES + nameBytes.length;
    if (!(header + length <= limit)) {
      throw this.#fail(`record ${quote(name)}: expected a header before byte ${limit}, got one at ${header}`);
    }
    const bytes = this.#read(header, length);
    const same =
      bytes.readUInt32LE(0) === LOCAL_HEADER &&
      bytes.readUInt16LE(26) === nameBytes.length &&
      bytes.subarray(LOCAL_BYTES).equals(nameBytes);
    if (!same) throw this.#fail(`record ${quote(name)}: expected its header at byte ${header}, got other bytes`);
    this.#checkStored(name, bytes.readUInt16LE(6), bytes.readUInt16LE(8));
    return header + length + bytes.readUInt16LE(28);
  }

  #uint64(bytes: Buffer, at: number): number {
    const value = bytes.readBigUInt64LE(at);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw this.#fail(`expected a number below 2^53, got ${value}`);
    return Number(value);
  }
}

const quote = (name: string): string => JSON.stringify(name.slice(0, 100));
