/**
 * Safetensors files for the fuzz test: random valid ones, six kinds of mutation of their headers, and a naive reader
 * (JSON.parse and BigInt sums, written apart from the real one) that says what a file holds. One long file,
 * because the damages are tables, and a table is read as a whole.
 */
import { uniformGenerator } from '@metashard/core';

const WIDTHS: Record<string, number> = {
  F32: 4,
  F16: 2,
  BF16: 2,
  I8: 1,
  U8: 1,
  I32: 4,
  I64: 8,
  BOOL: 1,
  F64: 8,
  I16: 2,
  U16: 2,
  U32: 4,
  U64: 8,
  F8_E4M3: 1,
  F8_E5M2: 1,
};
const DTYPE_NAMES = Object.keys(WIDTHS);

/** Bits of the format's other dtypes, which a damaged name may become: F64 without its 6 is F4. */
const OTHER_BITS: Record<string, number> = {
  C64: 64,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  F6_E2M3: 6,
  F6_E3M2: 6,
  F4: 4,
};

/** A member of the header: its key and value as they are written, before JSON.stringify of the parts. */
interface Entry {
  name: string;
  dtype: unknown;
  shape: unknown;
  data_offsets: unknown;
}

export interface Sample {
  bytes: Buffer;
  /** A key was written twice: no reader that keeps one of them is right. */
  duplicate: boolean;
}

export const KINDS = ['length', 'offsets', 'shapes', 'dtypes', 'structure', 'names'] as const;
export type Kind = (typeof KINDS)[number];

/** Random choices from a seed. */
export class Dice {
  #next: () => number;
  constructor(seed: number) {
    this.#next = uniformGenerator(seed);
  }
  below(n: number): number {
    return Math.floor(this.#next() * n);
  }
  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)] as T;
  }
}

function randomEntries(dice: Dice): Entry[] {
  const names = ['h.alpha', 'h.beta', 'h.gamma', 'bias', 'ärmel', 'x y', 'wte'].slice(0, 1 + dice.below(6));
  let begin = 0;
  return names.map((name) => {
    const dtype = dice.pick(DTYPE_NAMES);
    const shape = Array.from({ length: dice.below(4) }, () => dice.pick([0, 1, 2, 3, 4, 7]));
    const end = begin + shape.reduce((a, b) => a * b, WIDTHS[dtype] as number);
    const entry = { name, dtype, shape, data_offsets: [begin, end] };
    begin = end;
    return entry;
  });
}

const memberText = ({ name, ...info }: Entry): string => `${JSON.stringify(name)}:${JSON.stringify(info)}`;

function headerText(members: readonly string[], dice: Dice): string {
  const metadata = dice.below(2) === 0 ? ['"__metadata__":{"format":"pt"}'] : [];
  return `{${[...metadata, ...members].join(',')}}${' '.repeat(dice.below(9))}`;
}

function fileOf(header: Buffer, dataBytes: number, dice: Dice, length = BigInt(header.length)): Buffer {
  const data = Buffer.from(Uint8Array.from({ length: dataBytes }, () => dice.below(256)));
  const field = Buffer.alloc(8);
  field.writeBigUInt64LE(BigInt.asUintN(64, length));
  return Buffer.concat([field, header, data]);
}

const lastEnd = (entries: readonly Entry[]): number =>
  ((entries.at(-1) as Entry).data_offsets as number[])[1] as number;

/** A file of random tensors whose header is damaged in the given way (some damages leave it valid). */
export function mutatedFile(kind: Kind, dice: Dice): Sample {
  const entries = randomEntries(dice);
  const dataBytes = lastEnd(entries);
  const target = dice.pick(entries);
  let duplicate = false;
  if (kind === 'length') return { bytes: withLength(entries, dataBytes, dice), duplicate };
  if (kind === 'structure') {
    const header = withStructure(entries, dice);
    return {
      bytes: fileOf(header, dataBytes, dice),
      duplicate: header.toString('latin1').split('"__metadata__"').length > 2,
    };
  }
  let members: string[] | undefined;
  if (kind === 'offsets') changeOffsets(target, dataBytes, dice);
  if (kind === 'shapes') changeShape(target, dice);
  if (kind === 'dtypes')
    target.dtype = dice.pick<unknown>([
      ...DTYPE_NAMES,
      'f32',
      'F33',
      '',
      'float32',
      null,
      4,
      [],
      {},
      true,
      'toString',
      'F'.repeat(9999),
    ]);
  if (kind === 'names') [members, duplicate] = changeNames(entries, target, dice);
  members ??= entries.map(memberText);
  return { bytes: fileOf(Buffer.from(headerText(members, dice)), dataBytes, dice), duplicate };
}

function withLength(entries: readonly Entry[], dataBytes: number, dice: Dice): Buffer {
  const header = Buffer.from(headerText(entries.map(memberText), dice));
  const n = BigInt(header.length);
  const all = n + BigInt(dataBytes);
  const random = (BigInt(dice.below(2 ** 32)) << 32n) | BigInt(dice.below(2 ** 32));
  const length = dice.pick([
    n,
    0n,
    n - 1n,
    n + 1n,
    n + 8n,
    n - 8n,
    all,
    all + 1n,
    all - 1n,
    100_000_000n,
    100_000_001n,
    1n << 31n,
    1n << 32n,
    (1n << 53n) + n,
    1n << 63n,
    (1n << 64n) - 1n,
    (1n << 64n) - 8n,
    random,
    random >> 20n,
    random >> 40n,
    random >> 52n,
    n << 8n,
  ]);
  const file = fileOf(header, dataBytes, dice, length);
  if (dice.below(3) > 0) return file;
  if (dice.below(2) > 0) return Buffer.from(file.subarray(0, dice.below(file.length + 1)));
  return Buffer.concat([file, Buffer.alloc(1 + dice.below(20))]);
}

function changeOffsets(target: Entry, dataBytes: number, dice: Dice): void {
  const [begin, end] = target.data_offsets as [number, number];
  const any = dice.below(dataBytes + 9);
  const by = dice.pick([-8, -4, -1, 1, 4, 8]);
  target.data_offsets = dice.pick<unknown>([
    [begin, end],
    [begin + by, end],
    [begin, end + by],
    [begin + by, end + by],
    [any, end],
    [begin, any],
    [any, any],
    [end, begin],
    [begin, end, end],
    [begin],
    [],
    null,
    'x',
    { 0: begin, 1: end },
    [[begin], end],
    [String(begin), end],
    [begin + 0.5, end],
    [null, end],
    [begin, 2 ** 53],
    [begin, 1e300],
    [2 ** 53 - 1, 2 ** 53 - 1],
    [-begin - 1, end],
    [begin - 2 ** 32, end - 2 ** 32],
    [0, dataBytes],
  ]);
}

function changeShape(target: Entry, dice: Dice): void {
  const shape = target.shape as number[];
  const at = dice.below(shape.length + 1);
  const odd = dice.pick<unknown>([
    0,
    1,
    2,
    -1,
    0.5,
    2 ** 31,
    2 ** 32,
    2 ** 53,
    2 ** 53 - 1,
    1e300,
    null,
    '2',
    [2],
    true,
    {},
  ]);
  target.shape = dice.pick<unknown>([
    [...shape].reverse(),
    [...shape, 1],
    [1, ...shape],
    shape.slice(1),
    shape.toSpliced(at, 1, odd as number),
    shape.toSpliced(at, 0, odd as number),
    [...shape, ...new Array(8).fill(1)],
    new Array(9).fill(1),
    new Array(5000).fill(2),
    [2 ** 32, 2 ** 32],
    [2 ** 52, 0, 2 ** 52],
    [0, 2 ** 52, 2 ** 52],
    shape.map((dim) => dim + 1),
    null,
    3,
    '[]',
    { length: 1 },
    [shape],
  ]);
}

function changeNames(entries: Entry[], target: Entry, dice: Dice): [string[], boolean] {
  const rename = dice.pick([
    '__proto__',
    'constructor',
    'toString',
    'hasOwnProperty',
    '',
    '__metadata__',
    'a/../b',
    '\0',
    '\n',
    'n'.repeat(20_000),
    '😀',
    '\ud800',
    '1',
    '4294967295',
    entries[0]?.name ?? 'x',
  ]);
  const text = entries.map(memberText);
  const at = entries.indexOf(target);
  const copy = dice.pick(entries);
  switch (dice.below(5)) {
    case 0: // the same member twice, or one name for two
      return [text.toSpliced(dice.below(text.length + 1), 0, memberText({ ...copy, name: target.name })), true];
    case 1: {
      // the same name in another spelling
      const escaped = [...target.name].map((c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`).join('');
      return [
        text.toSpliced(at + 1, 0, `"${escaped}":${memberText(target).slice(memberText(target).indexOf(':{') + 1)}`),
        true,
      ];
    }
    case 2: {
      // a key twice within an entry
      const key = dice.pick(['dtype', 'shape', 'data_offsets'] as const);
      const extra = `,${JSON.stringify(key)}:${JSON.stringify(target[key])}}`;
      return [text.with(at, `${(text[at] as string).slice(0, -1)}${extra}`), true];
    }
    default: {
      const taken = entries.some((entry) => entry !== target && entry.name === rename);
      target.name = rename;
      return [entries.map(memberText), taken];
    }
  }
}

function withStructure(entries: readonly Entry[], dice: Dice): Buffer {
  const text = headerText(entries.map(memberText), dice);
  const at = dice.below(text.length);
  const junk = dice.pick([
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    '"',
    '\\',
    ' ',
    '\n',
    '\t',
    '\0',
    '0',
    '-',
    '/**/',
    'null',
    '\u00a0',
    '\ufeff',
    'é',
  ]);
  const rest = text.slice(1, text.lastIndexOf('}'));
  const changed = dice.pick([
    text.slice(0, at) + text.slice(at + 1),
    text.slice(0, at) + junk + text.slice(at),
    text.slice(0, at) + junk + text.slice(at + junk.length),
    text.slice(0, at),
    text.slice(at),
    ` ${text}`,
    `\ufeff${text}`,
    `${text}\0`,
    `${text}x`,
    `${text}{}`,
    `[${text}]`,
    '',
    ' ',
    'null',
    '{',
    '{}',
    '[]',
    '"x"',
    '['.repeat(100_000),
    '{"a":'.repeat(50_000),
    `{"__metadata__":${'['.repeat(70_000)}`,
    `{${rest},}`,
    `{,${rest}}`,
    `{${rest.replaceAll('"', "'")}}`,
    `{"__metadata__":{"a":1},${rest}}`,
    `{"__metadata__":[],${rest}}`,
    `{"__metadata__":{},"__metadata__":{},${rest}}`,
    `{${rest.replaceAll(',', ' , ')}}`,
    text.replace(/[0-9]+/, (digits) => `${digits}.0`),
    text.replace(/[0-9]+/, (digits) => `${digits}e0`),
    text.replace(/[0-9]+/, (digits) => `0${digits}`),
    text.replace(/[0-9]+/, (digits) => `-${digits}`),
    text.replace('"dtype"', '"dtypes"'),
    text.replace('"shape"', '"dim\\u0065s"'),
    text.replace('}', ',"strides":[1]}'),
    text.replace(/"shape":[^\]]*\],/, ''),
    text.replace('"dtype"', '"d\\u0074ype"'),
  ]);
  const header = Buffer.from(changed);
  if (dice.below(4) === 0 && header.length > 0) header[dice.below(header.length)] = dice.below(256);
  return header;
}

export interface NaiveTensor {
  dtype: string;
  shape: number[];
  begin: number;
  end: number;
}

/**
 * What a file holds by the format's rules, spans counted from the file's start; undefined where it breaks one. Blind to
 * duplicate keys.
 */
export function naiveRead(file: Buffer): Map<string, NaiveTensor> | undefined {
  try {
    const length = file.readBigUInt64LE();
    if (length > BigInt(file.length - 8)) return undefined;
    const start = 8 + Number(length);
    const header: unknown = JSON.parse(
      new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(file.subarray(8, start)),
    );
    if (!isObject(header)) return undefined;
    const tensors = new Map<string, NaiveTensor>();
    for (const [name, entry] of Object.entries(header)) {
      if (name === '__metadata__') {
        if (!isObject(entry) || !Object.values(entry).every((value) => typeof value === 'string')) return undefined;
        continue;
      }
      const tensor = naiveEntry(entry, start);
      if (tensor === undefined) return undefined;
      tensors.set(name, tensor);
    }
    return tiles([...tensors.values()], start, file.length) ? tensors : undefined;
  } catch {
    return undefined;
  }
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

function naiveEntry(entry: unknown, start: number): NaiveTensor | undefined {
  if (!isObject(entry) || Object.keys(entry).sort().join() !== 'data_offsets,dtype,shape') return undefined;
  const { dtype, shape, data_offsets: span } = entry;
  if (typeof dtype !== 'string' || !Array.isArray(shape) || !shape.every(isCount) || shape.length > 8) return undefined;
  if (!Array.isArray(span) || span.length !== 2 || !span.every(isCount)) return undefined;
  const [begin, end] = span as [number, number];
  let elements = 1n;
  for (const dim of shape) {
    elements *= BigInt(dim);
    if (elements >= 1n << 53n) return undefined;
  }
  const bits = Object.hasOwn(WIDTHS, dtype) ? 8 * (WIDTHS[dtype] as number) : OTHER_BITS[dtype];
  if (end < begin) return undefined;
  if (typeof bits === 'number' && elements * BigInt(bits) !== 8n * BigInt(end - begin)) return undefined;
  return { dtype, shape, begin: start + begin, end: start + end };
}

/** Marks every byte of the data section with how many tensors own it: each must have one owner. */
function tiles(tensors: readonly NaiveTensor[], start: number, fileEnd: number): boolean {
  const owners = new Uint8Array(fileEnd - start);
  for (const { begin, end } of tensors) {
    if (end > fileEnd) return false;
    for (let at = begin; at < end; at++) owners[at - start] = (owners[at - start] as number) + 1;
  }
  // An empty tensor must not lie inside another one.
  const inside = tensors.some(
    (empty) => empty.begin === empty.end && tensors.some((t) => t.begin < empty.begin && empty.begin < t.end),
  );
  return !inside && owners.every((count) => count === 1);
}
