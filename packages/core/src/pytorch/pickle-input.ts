/**
 * The bytes of one or several pickles, read forward. Bytes come at once (a record of a zip archive) or as a growing
 * prefix of a file whose pickles say themselves where they end. No meaning of opcodes here.
 * Numbers: Python's pickletools ("int4", "uint8", "float8", "long1"), little-endian except for floats.
 */
import { checkpointError } from '../safetensors.js';

/** Most bytes of the pickles of one file; those of a checkpoint hold a few hundred bytes per tensor. */
export const MAX_PICKLE_BYTES = 32 * 2 ** 20;
/** Longest string in a pickle. */
const MAX_STRING_BYTES = 2 ** 20;
/** Longest line of the text arguments of GLOBAL. */
const MAX_LINE_BYTES = 512;
const NEWLINE = 0x0a;
const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

export class PickleInput {
  #bytes: Buffer;
  #at = 0;
  readonly #prefix: ((length: number) => Buffer) | undefined;

  /** `prefix` gives the first `length` bytes of the file, or all that there are; without it `bytes` are all. */
  constructor(
    readonly file: string,
    bytes: Buffer,
    prefix?: (length: number) => Buffer,
  ) {
    this.#bytes = bytes;
    this.#prefix = prefix;
  }

  /** Bytes read so far. */
  get position(): number {
    return this.#at;
  }

  /** The error of what was found at this place: `expected …, got …`. */
  fail(what: string, hint?: string): Error {
    return checkpointError(this.file, undefined, `pickle: ${what}, at byte ${this.#at}`, { hint });
  }

  uint8(): number {
    const start = this.#take(1);
    return this.#bytes.readUInt8(start);
  }
  uint16(): number {
    const start = this.#take(2);
    return this.#bytes.readUInt16LE(start);
  }
  uint32(): number {
    const start = this.#take(4);
    return this.#bytes.readUInt32LE(start);
  }
  int32(): number {
    const start = this.#take(4);
    return this.#bytes.readInt32LE(start);
  }
  float64(): number {
    const start = this.#take(8);
    return this.#bytes.readDoubleBE(start);
  }
  /** A length; one past 2^53 - 1 is an error. */
  uint64(): number {
    const start = this.#take(8);
    const value = Number(this.#bytes.readBigUInt64LE(start));
    if (!Number.isSafeInteger(value)) throw this.fail(`expected a length below 2^53, got ${value}`);
    return value;
  }

  /** A whole number of so many bytes in two's complement, the lowest byte first. */
  integer(length: number): bigint {
    const start = this.#take(length);
    if (length === 0) return 0n;
    if (length <= 6) return BigInt(this.#bytes.readIntLE(start, length));
    const hex = Buffer.from(this.#bytes.subarray(start, start + length))
      .reverse()
      .toString('hex');
    return BigInt.asIntN(8 * length, BigInt(`0x${hex}`));
  }

  /** Text of so many bytes of UTF-8. */
  string(length: number): string {
    const start = this.#takeString(length);
    try {
      return UTF8.decode(this.#bytes.subarray(start, start + length));
    } catch {
      throw this.fail('expected a string in UTF-8, got other bytes');
    }
  }

  /** Goes past a string of bytes. */
  skip(length: number): void {
    this.#takeString(length);
  }

  /** Text up to the end of the line, which it goes past. */
  line(): string {
    let length = 0;
    while (this.#peek(length) !== NEWLINE) {
      if (++length > MAX_LINE_BYTES) throw this.fail(`expected a line of at most ${MAX_LINE_BYTES} bytes, got more`);
    }
    const text = this.string(length);
    this.#at++;
    return text;
  }

  #peek(ahead: number): number {
    this.#need(ahead + 1);
    return this.#bytes[this.#at + ahead] as number;
  }

  #takeString(length: number): number {
    if (length > MAX_STRING_BYTES) {
      throw this.fail(`expected a string of at most ${MAX_STRING_BYTES} bytes, got ${length}`);
    }
    return this.#take(length);
  }

  /**
   * Where the next `length` bytes start; goes past them. Call it before `#bytes` is looked at, which it may replace.
   */
  #take(length: number): number {
    this.#need(length);
    this.#at += length;
    return this.#at - length;
  }

  #need(length: number): void {
    const end = this.#at + length;
    if (end <= this.#bytes.length) return;
    if (end > MAX_PICKLE_BYTES) throw this.fail(`expected pickles of at most ${MAX_PICKLE_BYTES} bytes, got more`);
    if (this.#prefix !== undefined) {
      this.#bytes = this.#prefix(Math.min(MAX_PICKLE_BYTES, Math.max(2 * this.#bytes.length, end, 2 ** 16)));
    }
    if (end > this.#bytes.length) {
      const got = this.#bytes.length - this.#at;
      throw this.fail(`expected ${length} more bytes, got ${got}: the pickle was cut short`);
    }
  }
}
