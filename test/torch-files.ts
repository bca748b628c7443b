/**
 * Writes PyTorch files byte by byte for tests: pickles of protocol 2 without a memo, and zip archives of stored records
 * with every field at hand. Written from the formats' descriptions, apart from the reader.
 */

/** A Python value, as it is pickled. */
export type Py =
  | null
  | boolean
  | number
  | bigint
  | string
  | Buffer
  | { tuple: readonly Py[] }
  | { list: readonly Py[] }
  | { dict: readonly (readonly [Py, Py])[] }
  /** "module name" */
  | { global: string }
  | { call: Py; args: readonly Py[] }
  | { persistent: Py };

const MARK = Buffer.from('(');

function withUint32(code: string, value: number): Buffer {
  const bytes = Buffer.alloc(5);
  bytes.write(code, 'latin1');
  bytes.writeUInt32LE(value, 1);
  return bytes;
}

function encodeInteger(value: bigint): Buffer {
  const bytes = Buffer.alloc(18);
  bytes.writeUInt8(0x8a);
  bytes.writeUInt8(16, 1);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, value), 2);
  bytes.writeBigInt64LE(BigInt.asIntN(64, value >> 64n), 10);
  return bytes;
}

function encodeFloat(value: number): Buffer {
  const bytes = Buffer.from('G00000000');
  bytes.writeDoubleBE(value, 1);
  return bytes;
}

/** The opcodes that make a value; a Buffer stands for opcodes of one's own. */
export function encode(value: Py): Buffer {
  if (value === null) return Buffer.from('N');
  if (Buffer.isBuffer(value)) return value;
  if (typeof value === 'boolean') return Buffer.from([value ? 0x88 : 0x89]);
  if (typeof value === 'bigint') return encodeInteger(value);
  if (typeof value === 'number') return Number.isInteger(value) ? encodeInteger(BigInt(value)) : encodeFloat(value);
  if (typeof value === 'string') return Buffer.concat([withUint32('X', Buffer.byteLength(value)), Buffer.from(value)]);
  if ('global' in value) return Buffer.from(`c${value.global.replace(' ', '\n')}\n`);
  if ('persistent' in value) return Buffer.concat([encode(value.persistent), Buffer.from('Q')]);
  if ('call' in value) return Buffer.concat([encode(value.call), encode({ tuple: value.args }), Buffer.from('R')]);
  if ('tuple' in value) return Buffer.concat([MARK, ...value.tuple.map(encode), Buffer.from('t')]);
  if ('list' in value) return Buffer.concat([Buffer.from(']('), ...value.list.map(encode), Buffer.from('e')]);
  return Buffer.concat([Buffer.from('}('), ...value.dict.flat().map(encode), Buffer.from('u')]);
}

export const pickle = (value: Py, protocol = 2): Buffer =>
  Buffer.concat([Buffer.from([0x80, protocol]), encode(value), Buffer.from('.')]);

export const ORDERED_DICT: Py = { call: { global: 'collections OrderedDict' }, args: [] };

export interface PyStorage {
  key: Py;
  /** FloatStorage, … */
  type: string;
  elements: Py;
  legacy?: boolean;
}

export const storage = ({ key, type, elements, legacy = false }: PyStorage): Py => ({
  persistent: { tuple: ['storage', { global: `torch ${type}` }, key, 'cpu', elements, ...(legacy ? [null] : [])] },
});

export const rebuildTensor = (of: Py, offset: Py, shape: readonly Py[], strides: readonly Py[]): Py => ({
  call: { global: 'torch._utils _rebuild_tensor_v2' },
  args: [of, offset, { tuple: shape }, { tuple: strides }, false, ORDERED_DICT],
});

export interface ZipOptions {
  /** Sizes, offsets and counts in zip64 fields, as large archives have them. */
  zip64?: boolean;
  /** Padding that brings data to multiples of 64. */
  align?: boolean;
  comment?: string;
}

export interface ZipInput {
  name: string;
  data: Buffer;
  method?: number;
  flags?: number;
  /** Name in the local header. */
  localName?: string;
  /** Size in the directory. */
  nbytes?: number;
  /** Where the directory says that the local header is. */
  offset?: number;
}

/** An archive of stored records. */
export function zip(
  records: readonly ZipInput[],
  { zip64 = false, align = true, comment = '' }: ZipOptions = {},
): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  for (const record of records) {
    const header = localHeader(record, at, align);
    directory.push(directoryEntry(record, at, zip64));
    parts.push(header, record.data);
    at += header.length + record.data.length;
  }
  const entries = Buffer.concat(directory);
  return Buffer.concat([...parts, entries, endRecords(records.length, entries.length, at, zip64, comment)]);
}

function localHeader(
  { name, data, method = 0, flags = 0, localName = name }: ZipInput,
  at: number,
  align: boolean,
): Buffer {
  const nameBytes = Buffer.from(localName);
  const padding = align ? 4 + ((64 - ((at + 34 + nameBytes.length) % 64)) % 64) : 0;
  const header = Buffer.alloc(30 + nameBytes.length + padding, 'Z');
  header.fill(0, 0, 30);
  header.writeUInt32LE(0x04034b50, 0);
  header.writeUInt16LE(flags, 6);
  header.writeUInt16LE(method, 8);
  header.writeUInt32LE(data.length, 18);
  header.writeUInt32LE(data.length, 22);
  header.writeUInt16LE(nameBytes.length, 26);
  header.writeUInt16LE(padding, 28);
  nameBytes.copy(header, 30);
  if (align) header.write('FB', 30 + nameBytes.length);
  if (align) header.writeUInt16LE(padding - 4, 32 + nameBytes.length);
  return header;
}

function directoryEntry(
  { name, data, method = 0, flags = 0, nbytes, offset }: ZipInput,
  at: number,
  zip64: boolean,
): Buffer {
  const nameBytes = Buffer.from(name);
  const extra = Buffer.alloc(zip64 ? 28 : 0);
  const [size, header] = [nbytes ?? data.length, offset ?? at];
  if (zip64) {
    extra.writeUInt16LE(1);
    extra.writeUInt16LE(24, 2);
    for (const [i, value] of [size, size, header].entries()) extra.writeBigUInt64LE(BigInt(value), 4 + 8 * i);
  }
  const entry = Buffer.alloc(46);
  entry.writeUInt32LE(0x02014b50);
  entry.writeUInt16LE(flags, 8);
  entry.writeUInt16LE(method, 10);
  entry.writeUInt32LE(zip64 ? 0xffffffff : size, 20);
  entry.writeUInt32LE(zip64 ? 0xffffffff : size, 24);
  entry.writeUInt16LE(nameBytes.length, 28);
  entry.writeUInt16LE(extra.length, 30);
  entry.writeUInt32LE(zip64 ? 0xffffffff : header, 42);
  return Buffer.concat([entry, nameBytes, extra]);
}

function endRecords(count: number, nbytes: number, offset: number, zip64: boolean, comment: string): Buffer {
  const end = Buffer.alloc(22 + comment.length);
  end.writeUInt32LE(0x06054b50);
  for (const at of [8, 10]) end.writeUInt16LE(zip64 ? 0xffff : count, at);
  end.writeUInt32LE(zip64 ? 0xffffffff : nbytes, 12);
  end.writeUInt32LE(zip64 ? 0xffffffff : offset, 16);
  end.writeUInt16LE(comment.length, 20);
  end.write(comment, 22);
  if (!zip64) return end;
  const wide = Buffer.alloc(76);
  wide.writeUInt32LE(0x06064b50);
  wide.writeBigUInt64LE(44n, 4);
  for (const at of [24, 32]) wide.writeBigUInt64LE(BigInt(count), at);
  wide.writeBigUInt64LE(BigInt(nbytes), 40);
  wide.writeBigUInt64LE(BigInt(offset), 48);
  wide.writeUInt32LE(0x07064b50, 56);
  wide.writeBigUInt64LE(BigInt(offset + nbytes), 64);
  wide.writeUInt32LE(1, 72);
  return Buffer.concat([wide, end]);
}

/** The records of a file of torch.save: the pickle, the small ones, the storages by key. */
export function torchRecords(data: Buffer, storages: Readonly<Record<string, Buffer>>, folder = 'archive'): ZipInput[] {
  return [
    { name: `${folder}/data.pkl`, data },
    { name: `${folder}/byteorder`, data: Buffer.from('little') },
    ...Object.entries(storages).map(([key, bytes]) => ({ name: `${folder}/data/${key}`, data: bytes })),
    { name: `${folder}/version`, data: Buffer.from('3\n') },
  ];
}

/** A file in the format before PyTorch 1.6. */
export function legacyFile(
  value: Py | Buffer,
  storages: readonly (readonly [key: string, elements: number, bytes: Buffer])[],
): Buffer {
  const machine: Py = {
    dict: [
      ['protocol_version', 1001],
      ['little_endian', true],
    ],
  };
  const sections = storages.flatMap(([, elements, bytes]) => {
    const count = Buffer.alloc(8);
    count.writeBigUInt64LE(BigInt(elements));
    return [count, bytes];
  });
  return Buffer.concat([
    pickle(0x1950a86a20f9469cfc6cn),
    pickle(1001),
    pickle(machine),
    Buffer.isBuffer(value) ? value : pickle(value),
    pickle({ list: storages.map(([key]) => key) }),
    ...sections,
  ]);
}
