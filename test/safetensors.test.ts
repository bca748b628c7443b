/**
 * Reading and writing safetensors: round trips, and every rule of the format by name. Mutated headers are
 * safetensors-fuzz.test.ts.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  ArgumentError,
  CheckpointError,
  callOp,
  DTYPES,
  type DType,
  elementCount,
  empty,
  F,
  loadSafetensors,
  MAX_HEADER_BYTES,
  openCheckpointSync,
  parseSafetensorsHeader,
  randn,
  readTensor,
  StateError,
  saveSafetensors,
  type Tensor,
  tensor,
  tensorFromBytes,
} from '@metashard/core';
import '@metashard/cpu';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { Dice, naiveRead } from './mutated-headers.js';

const folder = mkdtempSync(join(tmpdir(), 'metashard-safetensors-'));
afterAll(() => rmSync(folder, { recursive: true }));
const path = join(folder, 'model.safetensors');

/** A file with this header text and so many data bytes. */
function write(header: string | Uint8Array, dataBytes: number, length?: bigint): string {
  const text = Buffer.from(header);
  const field = Buffer.alloc(8);
  field.writeBigUInt64LE(length ?? BigInt(text.length));
  writeFileSync(path, Buffer.concat([field, text, Buffer.alloc(dataBytes, 7)]));
  return path;
}

function errorOf(run: () => unknown): CheckpointError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(CheckpointError);
    return error as CheckpointError;
  }
  throw new Error('expected a CheckpointError, got none');
}

const dtypes = fc.constantFrom(...(Object.keys(DTYPES) as DType[]));
const namedTensors = fc.uniqueArray(
  fc.record({
    name: fc.string({ unit: 'grapheme', maxLength: 20 }).filter((name) => name !== '__metadata__'),
    dtype: dtypes,
    shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
    seed: fc.nat(),
  }),
  { maxLength: 6, selector: ({ name }) => name },
);

describe('saveSafetensors and loadSafetensors', () => {
  it('give back names, dtypes, shapes, bytes and metadata, whatever they are', async () => {
    const metadata = fc.dictionary(fc.string(), fc.string({ unit: 'grapheme' }), { maxKeys: 3 });
    await fc.assert(
      fc.asyncProperty(namedTensors, metadata, async (list, pairs) => {
        const made = new Map(
          list.map(({ name, dtype, shape, seed }) => {
            const dice = new Dice(seed);
            const bytes = Uint8Array.from({ length: elementCount(shape) * DTYPES[dtype].bytes }, () => dice.below(256));
            return [name, tensorFromBytes(bytes, shape, { dtype })] as const;
          }),
        );
        await saveSafetensors(path, made, new Map(Object.entries(pairs)));
        const back = await loadSafetensors(path);
        expect([...back.keys()].sort()).toEqual([...made.keys()].sort());
        for (const [name, t] of made) {
          const got = back.get(name);
          expect([got?.dtype, got?.shape, got?.toBytes()]).toEqual([t.dtype, t.shape, t.toBytes()]);
        }
        expect([...openCheckpointSync(path).metadata].sort()).toEqual(Object.entries(pairs).sort());
      }),
      { numRuns: 200 },
    );
  });

  it('write the same bytes for the same state dict, aligned, and readable by the naive reader', async () => {
    const pairs = [
      ['b', tensor([1, 2, 3], { dtype: 'int8' })],
      ['a', tensor([1.5, 2.5], { dtype: 'float16' })],
      [
        'c',
        tensor([
          [1, 2],
          [3, 4],
        ]),
      ],
      ['scalar', tensor([5], { dtype: 'uint8', shape: [] })],
      ['long', tensor([1, -1], { dtype: 'int64' })],
    ] as const;
    await saveSafetensors(path, new Map(pairs), { format: 'pt' });
    const bytes = readFileSync(path);
    await saveSafetensors(path, new Map([...pairs].reverse()), { format: 'pt' });
    expect(readFileSync(path).equals(bytes)).toBe(true);
    const index = openCheckpointSync(path);
    expect([...index.tensors.keys()]).toEqual(['long', 'c', 'a', 'b', 'scalar']);
    for (const { offset, dtype } of index.tensors.values()) expect(offset % DTYPES[dtype as DType].bytes).toBe(0);
    expect(index.tensors.get('long')?.offset).toBe(8 + Number(bytes.readBigUInt64LE()));
    expect((8 + Number(bytes.readBigUInt64LE())) % 8).toBe(0);
    expect(naiveRead(bytes)?.get('c')?.shape).toEqual([2, 2]);
    expect((await readTensor(index, 'scalar')).toArray()).toBe(5);
    expect((await readTensor(index, 'c')).toArray()).toEqual([
      [1, 2],
      [3, 4],
    ]);
    expect((await readTensor(index, 'c', { device: 'meta' })).isMeta).toBe(true);
  });

  it('save views as they look, and leave no temporary file', async () => {
    const x = tensor([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    await saveSafetensors(
      path,
      new Map([
        ['column', x.select(1, 1)],
        ['row', x.select(0, 1)],
      ]),
    );
    const back = await loadSafetensors(path);
    expect([back.get('column')?.toArray(), back.get('row')?.toArray()]).toEqual([
      [2, 5],
      [4, 5, 6],
    ]);
    expect(readdirSync(folder)).toEqual(['model.safetensors']);
  });

  it('pass tensors larger than the window, and packed weights row by row', async () => {
    const large = randn([1100, 4100], { seed: 2 }); // 17.2 MiB
    const { CB } = F.quantizeWeight(large.narrow(0, 0, 33));
    await saveSafetensors(
      path,
      new Map([
        ['large', large],
        ['packed', callOp('pack_int8', [CB])[0] as Tensor],
      ]),
    );
    const back = await loadSafetensors(path);
    const same = (name: string, expected: Tensor): boolean =>
      Buffer.from((back.get(name) as Tensor).toBytes()).equals(Buffer.from(expected.toBytes()));
    expect([same('large', large), same('packed', CB)]).toEqual([true, true]);
  });

  it('leave the old file alone when a save fails', async () => {
    await saveSafetensors(path, new Map([['x', tensor([1])]]));
    const before = readFileSync(path);
    const meta = empty([2], { device: 'meta' });
    await expect(
      saveSafetensors(
        path,
        new Map([
          ['x', tensor([2])],
          ['m', meta],
        ]),
      ),
    ).rejects.toThrow(StateError);
    await expect(saveSafetensors(path, new Map([['__metadata__', tensor([2])]]))).rejects.toThrow(ArgumentError);
    await expect(saveSafetensors(path, new Map(), { a: 1 as unknown as string })).rejects.toThrow(ArgumentError);
    await expect(saveSafetensors(join(folder, 'no', 'x.safetensors'), new Map())).rejects.toThrow(CheckpointError);
    expect(readFileSync(path).equals(before)).toBe(true);
    expect(readdirSync(folder)).toEqual(['model.safetensors']);
  });

  it('name the tensor: none such, a dtype of others, a file that changed', async () => {
    write(
      '{"weight":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"other":{"dtype":"F4_X","shape":[3],"data_offsets":[8,9]}}',
      9,
    );
    const index = openCheckpointSync(path);
    expect(index.tensors.get('weight')).toMatchObject({ dtype: null, storedDtype: 'F64', nbytes: 8 });
    await expect(readTensor(index, 'weight')).rejects.toMatchObject({
      code: 'checkpoint_invalid',
      details: { file: path, tensor: 'weight' },
      message: `${path}: tensor "weight": expected a dtype that metashard has, got "F64"`,
    });
    await expect(readTensor(index, 'wieght')).rejects.toMatchObject({ hint: 'did you mean weight' });
    await saveSafetensors(path, new Map([['x', tensor([1, 2])]]));
    const before = openCheckpointSync(path);
    truncateSync(path, 40);
    await expect(readTensor(before, 'x')).rejects.toMatchObject({ name: 'CheckpointError', details: { file: path } });
    rmSync(path);
    await expect(readTensor(before, 'x')).rejects.toMatchObject({ name: 'CheckpointError', details: { file: path } });
  });
});

const one = (info: string): string => `{"w":${info}}`;
const good = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}';

describe('a broken header is a CheckpointError that names file and tensor', () => {
  it.each<[string, string, number, string | undefined, string]>([
    ['not JSON', 'hello', 0, undefined, 'expected an object, got "hello"'],
    ['not an object', '[1]', 0, undefined, 'expected an object'],
    ['an entry that is no object', '{"w":3}', 0, 'w', 'expected an object'],
    ['something after it', `${one(good)}x`, 8, undefined, 'expected the end of the text, got "x"'],
    ['a name twice', `{"w":${good},"\\u0077":${good}}`, 8, undefined, 'expected every key once, got "w" twice'],
    [
      'a key twice in an entry',
      one(good.replace('}', ',"shape":[2]}')),
      8,
      'w',
      'expected every key once, got "shape" twice',
    ],
    ['a key of no meaning', one(good.replace('}', ',"strides":[1]}')), 8, 'w', 'got "strides"'],
    ['no dtype', one('{"shape":[2],"data_offsets":[0,8]}'), 8, 'w', 'got no dtype'],
    ['one offset', one('{"dtype":"F32","shape":[2],"data_offsets":[0]}'), 8, 'w', 'expected data_offsets [begin, end]'],
    ['three offsets', one('{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}'), 8, 'w', 'at most 2 data_offsets'],
    [
      'a span that ends before it begins',
      one('{"dtype":"F32","shape":[2],"data_offsets":[8,0]}'),
      8,
      'w',
      'got [8, 0]',
    ],
    [
      'a span beyond the file',
      one('{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'),
      8,
      'w',
      'within 8 bytes, got [0, 16]',
    ],
    ['a hole', one('{"dtype":"F32","shape":[2],"data_offsets":[4,12]}'), 12, 'w', 'from 0 on, got [4, 12]: a hole'],
    [
      'an overlap',
      `{"v":${good},"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}`,
      12,
      'w',
      'got [4, 12]: an overlap',
    ],
    ['data that belong to nobody', one(good), 9, undefined, 'expected tensors to cover 9 bytes of data, got 8'],
    [
      'a shape of another size',
      one('{"dtype":"F16","shape":[2],"data_offsets":[0,8]}'),
      8,
      'w',
      'span of 4 bytes for F16 [2], got 8',
    ],
    [
      'a negative dimension',
      one('{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}'),
      8,
      'w',
      'whole number from 0 to 2^53 - 1, got "-2"',
    ],
    ['a dimension with a point', one('{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}'), 8, 'w', 'got "2.0"'],
    [
      'a dimension of 2^53',
      one('{"dtype":"F32","shape":[9007199254740992],"data_offsets":[0,8]}'),
      8,
      'w',
      'whole number',
    ],
    [
      'too many elements',
      one('{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,8]}'),
      8,
      'w',
      'fewer than 2^53 elements',
    ],
    [
      'nine dimensions',
      one('{"dtype":"F32","shape":[2,1,1,1,1,1,1,1,1],"data_offsets":[0,8]}'),
      8,
      'w',
      'at most 8 dimensions',
    ],
    ['metadata that is not text', '{"__metadata__":{"a":1}}', 0, undefined, 'expected a string'],
    ['a depth of a million', '['.repeat(1_000_000), 0, undefined, 'expected an object'],
    ['a name full of levels', `{"w":${'{"dtype":'.repeat(100_000)}`, 0, 'w', 'expected a string'],
  ])('%s', (_, header, dataBytes, name, message) => {
    const error = errorOf(() => openCheckpointSync(write(header, dataBytes)));
    expect(error.message).toContain(message);
    expect(error.details).toEqual(name === undefined ? { file: path } : { file: path, tensor: name });
    expect(error.message.startsWith(path)).toBe(true);
    expect(error.message).not.toContain('\n');
  });

  it('whatever the length field says', () => {
    for (const length of [9n, 1000n, BigInt(MAX_HEADER_BYTES)]) {
      expect(errorOf(() => openCheckpointSync(write('{}', 0, length))).message).toContain(
        'expected a header within 2 bytes',
      );
    }
    for (const length of [BigInt(MAX_HEADER_BYTES) + 1n, 1n << 53n, (1n << 64n) - 1n]) {
      expect(errorOf(() => openCheckpointSync(write('{}', 0, length))).message).toContain(`got ${length}`);
    }
    for (const bytes of [0, 1, 7]) {
      writeFileSync(path, Buffer.alloc(bytes));
      expect(errorOf(() => openCheckpointSync(path)).message).toContain(`expected at least 8 bytes, got ${bytes}`);
    }
    expect(errorOf(() => openCheckpointSync(write(Uint8Array.of(0x7b, 0xff, 0x7d), 0))).message).toContain('UTF-8');
  });

  it('but odd things that are allowed are read', () => {
    expect(openCheckpointSync(write('{}', 0)).tensors.size).toBe(0);
    expect(openCheckpointSync(write(` ${one(good)} \n`, 8)).tensors.size).toBe(1);
    const names = ['__proto__', 'constructor', 'toString', '', 'a b', '\u0000'];
    const members = names.map(
      (name, i) => `${JSON.stringify(name)}:{"dtype":"U8","shape":[],"data_offsets":[${i},${i + 1}]}`,
    );
    expect([...openCheckpointSync(write(`{${members.join()}}`, names.length)).tensors.keys()]).toEqual(names);
    const empties = one('{"dtype":"F32","shape":[0,9],"data_offsets":[8,8]}').replace('}}', `},"v":${good}}`);
    expect(openCheckpointSync(write(empties, 8)).tensors.get('w')?.nbytes).toBe(0);
  });

  it('spans in any order tile the data; moving one end of any breaks it', () => {
    const sizes = fc.array(fc.nat(20), { minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(sizes, fc.nat(), fc.nat(), fc.constantFrom(-1, 1), (list, turn, pick, by) => {
        const ends = list.map((_, i) => list.slice(0, i + 1).reduce((sum, size) => sum + size, 0));
        const end = ends.at(-1) as number;
        const entries = ends.map((e, i) => ({ name: `t${i}`, span: [e - (list[i] as number), e] as [number, number] }));
        const turned = entries.map((_, i) => entries[(i + turn) % entries.length] as (typeof entries)[number]);
        const text = (all: typeof entries): Buffer =>
          Buffer.from(
            `{${all.map(({ name, span: [a, b] }) => `"${name}":{"dtype":"?","shape":[],"data_offsets":[${a},${b}]}`).join()}}`,
          );
        expect(parseSafetensorsHeader(text(turned), end, 'f').tensors.size).toBe(list.length);
        const victim = entries[pick % entries.length] as (typeof entries)[number];
        victim.span[1] += by;
        errorOf(() => parseSafetensorsHeader(text(turned), end, 'f'));
      }),
    );
  });

  it('takes a header of 4 MB with 64,000 tensors, and one of 100 MB of nothing, in bounded time', () => {
    const entry = (_: unknown, i: number): string =>
      `"t${i}":{"dtype":"U8","shape":[1],"data_offsets":[${i},${i + 1}]}`;
    write(`{${Array.from({ length: 64_000 }, entry).join()}}`, 64_000);
    const start = performance.now();
    expect(openCheckpointSync(path).tensors.size).toBe(64_000);
    write('', 0, BigInt(MAX_HEADER_BYTES));
    truncateSync(path, 8 + MAX_HEADER_BYTES);
    expect(errorOf(() => openCheckpointSync(path)).message).toContain('expected an object');
    expect(performance.now() - start).toBeLessThan(10_000);
  });
});
