/**
 * PyTorch files for the fuzz test: six kinds of damage to real and made ones, and what may be read from those whose
 * numbers are known (written apart from the reader, in BigInt and element by element).
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Dice } from './mutated-headers.js';
import {
  legacyFile,
  type Py,
  pickle,
  rebuildTensor,
  storage,
  torchRecords,
  type ZipInput,
  zip,
} from './torch-files.js';

export { Dice };

export const KINDS = ['numbers', 'globals', 'opcodes', 'bytes', 'archive', 'legacy'] as const;
export type Kind = (typeof KINDS)[number];

export interface Sample {
  bytes: Buffer;
  /** Elements by tensor where it is known; null: the file must be refused; undefined: whatever holds together. */
  expected?: ReadonlyMap<string, Buffer> | null;
}

const fixture = (name: string): Buffer =>
  readFileSync(fileURLToPath(new URL(`./fixtures/pytorch/${name}`, import.meta.url)));
const ARCHIVES = ['dtypes.bin', 'views.bin', 'module.bin', 'parameters.pt', 'protocol5.pt', 'lightning.ckpt.pt'].map(
  fixture,
);
const LEGACY = fixture('legacy.bin');

const TYPES: readonly (readonly [type: string, width: number])[] = [
  ['FloatStorage', 4],
  ['HalfStorage', 2],
  ['LongStorage', 8],
  ['ByteStorage', 1],
];
const ODD: readonly Py[] = [
  0,
  1,
  -1,
  7,
  2 ** 31,
  2 ** 32,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 63n,
  -(2n ** 64n),
  0.5,
  null,
  true,
  '1',
];

/** A file of that kind. */
export function mutatedTorchFile(kind: Kind, dice: Dice): Sample {
  switch (kind) {
    case 'numbers':
      return withNumbers(dice);
    case 'globals':
      return withGlobal(dice);
    case 'opcodes':
      return { bytes: archive(withOpcodes(madePickle(dice), dice)) };
    case 'bytes':
      return { bytes: withPickleBytes(dice.pick(ARCHIVES), dice) };
    case 'archive':
      return { bytes: withArchive(dice) };
    default:
      return { bytes: damage(LEGACY, 0, LEGACY.length, dice) };
  }
}

const DATA = Buffer.from(Uint8Array.from({ length: 96 }, (_, i) => i * 37 + 1));
const STORAGES = [DATA, DATA.subarray(0, 24)];
const archive = (data: Buffer): Buffer => zip(torchRecords(data, Object.fromEntries(STORAGES.entries())));

interface Numbers {
  offset: Py;
  shape: Py[];
  strides: Py[];
}

/** A view that lies within `count` elements. */
function randomView(count: number, dice: Dice): Numbers {
  const shape = Array.from({ length: dice.below(4) }, () => dice.below(5));
  const strides = shape.map(() => dice.below(8));
  const last = shape.reduce((sum, dim, axis) => sum + Math.max(dim - 1, 0) * (strides[axis] as number), 0);
  if (last >= count) return { offset: 0, shape: [count], strides: [1] };
  return { offset: dice.below(count - last), shape, strides };
}

/** A view of each of two storages, often with a number that does not fit. */
function withNumbers(dice: Dice): Sample {
  const expected = new Map<string, Buffer>();
  const items = STORAGES.map((bytes, key): [Py, Py] => {
    const [type, width] = dice.pick(TYPES);
    const view = randomView(bytes.length / width, dice);
    if (dice.below(3) === 0) spoil(view, dice);
    const elements = elementsOf(view, bytes, width);
    if (elements !== undefined) expected.set(`t${key}`, elements);
    const of = storage({ key: `${key}`, type, elements: bytes.length / width });
    return [`t${key}`, rebuildTensor(of, view.offset, view.shape, view.strides)];
  });
  return { bytes: archive(pickle({ dict: items })), expected: expected.size === items.length ? expected : null };
}

function spoil(view: Numbers, dice: Dice): void {
  const odd = dice.pick(ODD);
  const list = dice.pick([view.shape, view.strides]);
  const at = dice.below(list.length + 1);
  if (dice.below(3) === 0) view.offset = odd;
  else list.splice(at, dice.below(2), odd);
}

/** The elements of a view in order; undefined where it is none or leaves its storage. */
function elementsOf({ offset, shape, strides }: Numbers, bytes: Buffer, width: number): Buffer | undefined {
  const numbers = [offset, ...shape, ...strides];
  if (shape.length !== strides.length || shape.length > 8) return undefined;
  if (!numbers.every((one) => typeof one === 'bigint' || Number.isInteger(one))) return undefined;
  const [first, ...rest] = numbers.map((one) => BigInt(one as number | bigint)) as [bigint, ...bigint[]];
  if ([first, ...rest].some((one) => one < 0n || one >= 2n ** 53n)) return undefined;
  const [dims, steps] = [rest.slice(0, shape.length), rest.slice(shape.length)];
  const count = dims.reduce((product, dim) => product * dim, 1n);
  if (count === 0n) return Buffer.alloc(0);
  const last = dims.reduce((sum, dim, axis) => sum + (dim - 1n) * (steps[axis] as bigint), first);
  if ((last + 1n) * BigInt(width) > BigInt(bytes.length) || count * BigInt(width) > 2n ** 24n) return undefined;
  return copyElements(bytes, Number(first) * width, dims.map(Number), steps.map(Number), width);
}

/** Elements one by one, by the definition of strides; the first lies `start` bytes into `bytes`. */
export function copyElements(
  bytes: Buffer,
  start: number,
  shape: readonly number[],
  strides: readonly number[],
  width: number,
): Buffer {
  const count = shape.reduce((product, dim) => product * dim, 1);
  const copy = Buffer.alloc(count * width);
  for (let i = 0; i < count; i++) {
    let [rest, at] = [i, start];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      at += (rest % (shape[axis] as number)) * (strides[axis] as number) * width;
      rest = Math.floor(rest / (shape[axis] as number));
    }
    if (at < 0 || at + width > bytes.length) throw new Error(`an element lies at byte ${at} of ${bytes.length}`);
    bytes.copy(copy, i * width, at, at + width);
  }
  return copy;
}

const EVIL = [
  'os system',
  'posix system',
  'nt system',
  'subprocess Popen',
  'builtins eval',
  'builtins exec',
  '__builtin__ getattr',
  'builtins __import__',
  'torch load',
  'torch.hub load',
  'torch.storage _load_from_bytes',
  'torch._utils _rebuild_sparse_tensor',
  'torch.Tensor __init__',
  'collections OrderedDict.__class__',
  'numpy.core.multiarray _reconstruct',
  'pickle loads',
  'runpy _run_code',
  'ctypes CDLL',
  'Function constructor',
  'process exit',
  '__proto__ toString',
];

/** A call that a real unpickler would make, somewhere in a state dict. */
function withGlobal(dice: Dice): Sample {
  const target: Py = { global: dice.pick(EVIL) };
  const name = dice.pick(EVIL).split(' ') as [string, string];
  const stacked = Buffer.concat([short(name[0]), short(name[1]), Buffer.from([0x93])]);
  const callee = dice.pick<Py>([target, stacked]);
  const call: Py = { call: callee, args: dice.pick<Py[]>([['touch metashard-was-here'], [], [null, 1]]) };
  const evil = dice.pick<Py>([
    call,
    callee,
    { tuple: [call] },
    { list: [call] },
    { dict: [[call, 1]] },
    { persistent: call },
  ]);
  const items: [Py, Py][] = [...madeItems(dice), ['evil', evil]];
  const value: Py = dice.pick<Py>([
    { dict: items },
    { dict: [['state_dict', { dict: items }]] },
    { tuple: [evil] },
    evil,
  ]);
  if (dice.below(3) === 0) return { bytes: legacyFile({ dict: [['evil', evil]] }, []), expected: null };
  return { bytes: archive(pickle(value, 2 + dice.below(4))), expected: null };
}

function short(text: string): Buffer {
  return Buffer.concat([Buffer.from([0x8c, text.length]), Buffer.from(text)]);
}

function madeItems(dice: Dice): [Py, Py][] {
  const of = storage({ key: '0', type: 'FloatStorage', elements: 24 });
  return Array.from({ length: 1 + dice.below(3) }, (_, i) => {
    const { offset, shape, strides } = randomView(24, dice);
    return [`t${i}`, rebuildTensor(of, offset, shape, strides)];
  });
}

const madePickle = (dice: Dice): Buffer => pickle({ dict: madeItems(dice) }, 2 + dice.below(4));

const CODES = Buffer.from(
  '(.NQRab}]e)tsuqhrjcGJKMUTXCB\x80\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x93\x94\x950129FILPSVdgilop\x81\x82\x8f\x96',
  'latin1',
);

/** Opcodes put in, taken out or exchanged, after a call or at any byte. */
function withOpcodes(data: Buffer, dice: Dice): Buffer {
  const calls = [...data.keys()].filter((at) => data[at - 1] === 0x52 || data[at - 1] === 0x51);
  const at = dice.below(3) === 0 ? 2 + dice.below(data.length - 2) : dice.pick(calls);
  const filler = Buffer.from(
    Uint8Array.from({ length: dice.below(6) }, () => dice.pick([0, 1, 2, 4, 10, 255, dice.below(256)])),
  );
  const code = Buffer.from([dice.pick([...CODES])]);
  const put = dice.pick([
    code,
    Buffer.concat([code, filler]),
    Buffer.from([0x71, dice.below(256)]),
    Buffer.from([0x94]),
  ]);
  return Buffer.concat([data.subarray(0, at), put, data.subarray(at + dice.pick([0, 0, 0, 1, 2, 5]))]);
}

/** Bytes of the pickle of a real file, which lies first in it. */
function withPickleBytes(file: Buffer, dice: Dice): Buffer {
  const start = 30 + file.readUInt16LE(26) + file.readUInt16LE(28);
  return damage(file, start, file.indexOf('PK\x07\x08', start, 'latin1'), dice);
}

/** Headers, directory and end of a real file, or of a made one with the fields at hand. */
function withArchive(dice: Dice): Buffer {
  if (dice.below(2) === 0) {
    const file = dice.pick(ARCHIVES);
    return damage(file, dice.below(3) === 0 ? 0 : file.indexOf('PK\x01\x02', 0, 'latin1'), file.length, dice);
  }
  const records: ZipInput[] = torchRecords(madePickle(dice), { 0: DATA });
  const at = dice.below(records.length);
  const odd = dice.pick([0, 1, 24, 95, 97, 300, 2 ** 31, 2 ** 32 - 2]);
  const name = dice.pick([
    'archive/data.pkl',
    'archive/data/0',
    'data.pkl',
    '',
    '/',
    'a/b/data.pkl',
    '../data.pkl',
    'x'.repeat(2000),
  ]);
  const change = dice.pick<Partial<ZipInput>>([
    { method: 8 },
    { flags: 1 },
    { nbytes: odd },
    { offset: odd },
    { name },
    { localName: name },
    {},
  ]);
  const changed = records.with(at, { ...(records[at] as ZipInput), ...change });
  const repeated = dice.below(6) === 0 ? [...changed, dice.pick(changed)] : changed;
  return zip(repeated, {
    zip64: dice.below(2) === 0,
    align: dice.below(3) > 0,
    comment: dice.pick(['', '', 'PK\x05\x06', 'x']),
  });
}

/** One to four changes of the bytes from `start` to `end`. */
function damage(file: Buffer, start: number, end: number, dice: Dice): Buffer {
  let bytes = Buffer.from(file);
  for (let times = 1 + dice.below(4); times > 0 && bytes.length > 0; times--) {
    const at = Math.min(start + dice.below(Math.max(1, end - start)), bytes.length - 1);
    const value = dice.pick([0, 1, 0x7f, 0x80, 0xff, dice.below(256), dice.below(256)]);
    const what = dice.below(12);
    if (what < 7) bytes[at] = value;
    else if (what < 9) bytes.fill(value, at, Math.min(at + 1 + dice.below(8), bytes.length));
    else if (what === 9) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + dice.below(9))]);
    else if (what === 10)
      bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.max(0, at - dice.below(40)))]);
    else bytes.copy(bytes, at, dice.below(bytes.length));
    if (dice.below(40) === 0) bytes = Buffer.from(bytes.subarray(0, dice.below(bytes.length + 1)));
  }
  return bytes;
}
