/**
 * Reading PyTorch files: what torch 2.13 wrote (fixtures/pytorch) bit for bit, every rule of the pickle and of the
 * archive by name, and that nothing runs. Mutated files are pytorch-fuzz.test.ts.
 */
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  CheckpointError,
  type CheckpointIndex,
  dtypeOfSafetensors,
  loadSafetensors,
  openCheckpointSync,
  readTensor,
  saveSafetensors,
  tensor,
} from '@metashard/core';
import '@metashard/cpu';
import fc from 'fast-check';
import { afterAll, beforeEach, describe, expect, it } from 'vitest';
import { gatherStrided } from '../packages/core/dist/gather-strided.js';
import {
  legacyFile,
  ORDERED_DICT,
  type Py,
  pickle,
  rebuildTensor,
  storage,
  torchRecords,
  type ZipInput,
  type ZipOptions,
  zip,
} from './torch-files.js';

const fixtures = fileURLToPath(new URL('./fixtures/pytorch/', import.meta.url));
const expected = openCheckpointSync(join(fixtures, 'expected.safetensors'));
const expectedBytes = readFileSync(join(fixtures, 'expected.safetensors'));
const folder = mkdtempSync(join(tmpdir(), 'metashard-pytorch-'));
afterAll(() => rmSync(folder, { recursive: true }));
const path = join(folder, 'model.bin');

function errorOf(file: string): CheckpointError {
  try {
    openCheckpointSync(file);
  } catch (error) {
    expect(error).toBeInstanceOf(CheckpointError);
    const { message, details } = error as CheckpointError;
    expect(message).not.toContain('\n');
    expect(String(details.file).startsWith(file)).toBe(true);
    return error as CheckpointError;
  }
  throw new Error('expected a CheckpointError, got none');
}

/** A file whose pickle is this, beside a storage "0" of 24 bytes. */
function writeTorch(data: Py | Buffer, options: ZipOptions = {}): string {
  const bytes = Buffer.isBuffer(data) ? data : pickle(data);
  writeFileSync(path, zip(torchRecords(bytes, { 0: Buffer.alloc(24, 1) }), options));
  return path;
}

const floats = storage({ key: '0', type: 'FloatStorage', elements: 6 });
const matrix = rebuildTensor(floats, 0, [2, 3], [3, 1]);

describe('files of torch.save', () => {
  const good = ['dtypes.bin', 'views.bin', 'module.bin', 'parameters.pt', 'protocol5.pt', 'legacy.bin', 'mixed.pt'];
  const wrapped = ['lightning.ckpt.pt', 'trainer.pth', 'sharded/pytorch_model-00001-of-00002.bin'];
  it.each([...good, ...wrapped])('%s gives the tensors that torch has, bit for bit', async (name) => {
    const index = openCheckpointSync(join(fixtures, name));
    const wanted = [...expected.tensors].filter(([key]) => key.startsWith(`${name}/`));
    expect([...index.tensors.keys()].sort()).toEqual(wanted.map(([key]) => key.slice(name.length + 1)).sort());
    for (const [key, entry] of wanted) {
      const short = key.slice(name.length + 1);
      const got = index.tensors.get(short);
      expect(got).toMatchObject({ shape: entry.shape, dtype: dtypeOfSafetensors(entry.storedDtype) ?? null });
      expect(got?.nbytes).toBe(entry.nbytes);
      if (entry.dtype === null) continue;
      const bytes = expectedBytes.subarray(entry.offset, entry.offset + entry.nbytes);
      expect(Buffer.from((await readTensor(index, short)).toBytes()).equals(bytes)).toBe(true);
    }
  });

  it('dense tensors are plain spans of the file, tied ones the same', () => {
    const index = openCheckpointSync(join(fixtures, 'views.bin'));
    expect(index).toMatchObject({ format: 'pytorch', folder: fixtures.slice(0, -1) });
    expect(index.files).toEqual([
      { path: join(fixtures, 'views.bin'), bytes: readFileSync(join(fixtures, 'views.bin')).length },
    ]);
    const strided = [...index.tensors].filter(([, { strides }]) => strides !== undefined).map(([name]) => name);
    const views = ['transposed', 'columns', 'every_other', 'expanded', 'permuted', 'longs', 'bytes'];
    expect(strided.sort()).toEqual(views.sort());
    const base = index.tensors.get('base');
    expect(index.tensors.get('tied')).toEqual(base);
    expect((base?.offset ?? 1) % 64).toBe(0);
    expect(index.tensors.get('rows')).toEqual({ ...base, shape: [2, 6], offset: (base?.offset ?? 0) + 24, nbytes: 48 });
    expect(index.tensors.get('transposed')).toEqual({ ...base, shape: [6, 4], strides: [1, 6] });
    expect(index.tensors.get('columns')).toMatchObject({
      strides: [6, 1],
      offset: (base?.offset ?? 0) + 4,
      nbytes: 32,
    });
    expect(structuredClone(index)).toEqual(index);
  });

  it('dtypes that metashard lacks are listed, and refused when read', async () => {
    const index = openCheckpointSync(join(fixtures, 'dtypes.bin'));
    expect(index.tensors.get('float8_e4m3fn')).toMatchObject({ dtype: null, storedDtype: 'float8_e4m3fn', nbytes: 4 });
    await expect(readTensor(index, 'float64')).rejects.toThrow('expected a dtype that metashard has, got "float64"');
  });

  it('what was taken and what was left is in the metadata', () => {
    const metadataOf = (name: string) => Object.fromEntries(openCheckpointSync(join(fixtures, name)).metadata);
    expect(metadataOf('module.bin')).toEqual({ 'pytorch.container': 'zip' });
    expect(metadataOf('legacy.bin')).toEqual({ 'pytorch.container': 'legacy' });
    expect(metadataOf('lightning.ckpt.pt')).toEqual({
      'pytorch.container': 'zip',
      'pytorch.state_dict': 'state_dict',
      'pytorch.ignored':
        'epoch (int), lr (float), name (str), none (None), args (dict), blob (tuple), dtype (torch.float16)',
    });
    expect(metadataOf('trainer.pth')).toMatchObject({
      'pytorch.state_dict': 'model',
      'pytorch.ignored': 'optimizer (dict), rng (tensor)',
    });
    expect(metadataOf('mixed.pt')['pytorch.ignored']).toContain('blob (tuple), a key of type int (tensor)');
  });
});

describe('which file of a folder is opened', () => {
  const model = join(folder, 'model');
  beforeEach(() => {
    rmSync(model, { recursive: true, force: true });
    mkdirSync(model);
  });
  const put = (from: string, to: string) => copyFileSync(join(fixtures, from), join(model, to));
  const opened = (where = model): CheckpointIndex => openCheckpointSync(where);

  it('safetensors first, then pytorch_model.bin, then its index, then the only file', async () => {
    put('views.bin', 'weights.pth');
    put('module.bin', 'training_args.bin');
    put('module.bin', 'optimizer.pt');
    put('module.bin', 'rng_state_0.pth');
    expect(opened().tensors.has('base')).toBe(true);
    for (const number of [1, 2]) {
      put(`sharded/pytorch_model-0000${number}-of-00002.bin`, `pytorch_model-0000${number}-of-00002.bin`);
    }
    expect(() => opened()).toThrow(
      'expected pytorch_model.bin or pytorch_model.bin.index.json, got pytorch_model-00001-of-00002.bin',
    );
    put('sharded/pytorch_model.bin.index.json', 'pytorch_model.bin.index.json');
    expect([...opened().tensors.keys()]).toEqual(['a.weight', 'a.bias', 'b.weight']);
    expect(opened(join(model, 'pytorch_model.bin.index.json'))).toEqual(opened());
    put('module.bin', 'pytorch_model.bin');
    expect(opened().tensors.has('0.weight')).toBe(true);
    expect(opened(join(model, 'weights.pth')).tensors.has('base')).toBe(true);
    await saveSafetensors(join(model, 'model.safetensors'), new Map([['w', tensor([1])]]));
    expect(opened()).toMatchObject({ format: 'safetensors' });
  });

  it('shards hold what the index says', async () => {
    const index = opened(join(fixtures, 'sharded'));
    expect(index).toMatchObject({ format: 'pytorch', files: { length: 2 } });
    expect((await loadSafetensors(join(fixtures, 'sharded'))).get('b.weight')?.shape).toEqual([3, 2]);
    put('sharded/pytorch_model-00001-of-00002.bin', 'x.bin');
    writeFileSync(join(model, 'pytorch_model.bin.index.json'), '{"weight_map":{"a.weight":"x.bin"}}');
    expect(() => opened()).toThrow('tensor "a.bias": expected pytorch_model.bin.index.json to name this shard');
    writeFileSync(join(model, 'pytorch_model.bin.index.json'), '{"weight_map":{"a.weight":"../x.bin"}}');
    expect(() => opened()).toThrow('expected a shard inside the folder');
  });
});

describe('files that are refused', () => {
  it.each([
    ['evil.bin', 'got the global "posix.system", expected only what tensors are made of: collections.OrderedDict'],
    ['evil-legacy.bin', 'got the global "posix.system"'],
    ['whole-module.pt', 'got the global "torch.nn.modules.linear.Linear"'],
    [
      'program.pt',
      'expected data stored without compression, as torch.save writes, got compression method 8 (deflate)',
    ],
    ['compressed.bin', 'record "stored/data.pkl": expected data stored without compression'],
    ['list.pt', 'expected a state dict, got a list'],
    ['other-key.pt', 'got net (dict), epoch (int)'],
    ['negated.pt', 'got one with a conj or neg bit'],
  ])('%s: %s', (name, message) => {
    const error = errorOf(join(fixtures, name));
    expect(error.message).toContain(message);
    expect(error.code).toBe('checkpoint_invalid');
    expect(existsSync('metashard-was-here')).toBe(false);
  });

  it.each([
    'os system',
    'posix system',
    'builtins eval',
    'builtins getattr',
    '__builtin__ exec',
    'subprocess Popen',
    'torch load',
    'torch._utils _rebuild_qtensor',
    'torch _utils._rebuild_tensor_v2',
    'torch.nn.parameter Parameter.__init__',
    '__main__ Model',
    'constructor prototype',
    'torch __proto__',
    ' ',
  ])('the global %j', (name) => {
    const call: Py = { call: { global: name }, args: ['touch metashard-was-here'] };
    const message = `got the global ${JSON.stringify(name.replace(' ', '.'))}, expected only`;
    expect(
      errorOf(
        writeTorch({
          dict: [
            ['w', matrix],
            ['x', call],
          ],
        }),
      ).message,
    ).toContain(message);
    writeFileSync(path, legacyFile({ dict: [['x', call]] }, []));
    expect(errorOf(path).message).toContain(message);
  });

  const ops = (text: string) => Buffer.from(`\x80\x02${text}`, 'latin1');
  it.each([
    ['INST', ops('(ios\nsystem\n.'), 'got INST (0x69), at byte 4'],
    ['OBJ', ops('(o.'), 'got OBJ (0x6f)'],
    ['NEWOBJ', ops('ctorch\nSize\n)\x81.'), 'got NEWOBJ (0x81)'],
    ['EXT1', ops('\x82\x01.'), 'got EXT1 (0x82)'],
    ['PERSID', ops('P1\n.'), 'got PERSID (0x50)'],
    ['POP', ops('NN0.'), 'got POP (0x30)'],
    ['no opcode', ops('\xff.'), 'got no opcode (0xff)'],
    ['no PROTO', Buffer.from('}.'), 'expected the opcode PROTO, got EMPTY_DICT (0x7d)'],
    ['protocol 1', Buffer.from('\x80\x01}.', 'latin1'), 'expected pickle protocol 2 to 5, got 1'],
    ['protocol 6', ops('\x80\x06}.'), 'expected pickle protocol 2 to 5, got 6'],
    ['nothing', ops(''), 'expected 1 more bytes, got 0'],
    ['no value', ops('.'), 'expected one value at the end, got 0 and 0 open marks'],
    ['two values', ops('NN.'), 'expected one value at the end, got 2'],
    ['an open mark', ops('(.'), 'got 0 and 1 open marks'],
    ['a mark that hides a value', ops('N(\x85.'), 'expected 1 values on the stack, got 0'],
    ['a missing mark', ops('t.'), 'expected a mark on the stack, got none'],
    ['a missing memo', ops('h\x05.'), 'expected a kept value 5, got none'],
    ['a short string', ops('X\x05\0\0\0abc'), 'expected 5 more bytes, got 3'],
    ['a long string', ops('X\x01\0\x10\0'), 'expected a string of at most 1048576 bytes, got 1048577'],
    ['an endless string', ops('\x8d\xff\xff\xff\xff\xff\xff\xff\xff.'), 'expected a length below 2^53'],
    ['bad UTF-8', ops('X\x01\0\0\0\xff.'), 'expected a string in UTF-8'],
    ['a long int', ops('\x8b\0\0\0\x10.'), 'expected an int of at most 255 bytes'],
    ['a long line', ops(`c${'x'.repeat(600)}\n`), 'expected a line of at most 512 bytes'],
    ['a call of a string', ops('X\x01\0\0\0a)R.'), 'expected a function that makes tensors, got str'],
    ['a call of a storage type', ops('ctorch\nFloatStorage\n)R.'), 'got torch.FloatStorage'],
    ['a call with a list', ops('ctorch\nSize\n]R.'), 'expected a tuple of arguments, got list'],
    ['an append to a dict', ops('}Na.'), 'expected a list to append to, got dict'],
    ['an item of a list', ops(']NNs.'), 'expected a dict to add to, got list'],
    ['a key without a value', ops('}(Nu.'), 'expected keys and values, got 1 values'],
    ['a list as a key', ops('}]Ns.'), 'expected a string or a number as a key, got list'],
    ['a key twice', ops('}(K\x01NK\x01Nu.'), 'expected every key once, got a key of type int twice'],
    ['attributes of a list', ops(']}b.'), 'expected attributes of a dict, got dict for list'],
    ['a number as a module', ops('K\x01K\x02\x93.'), 'expected a module and a name, got int and int'],
    ['an id of nothing', ops('NQ.'), 'expected the persistent id of a storage'],
    ['no dict', ops('K\x05.'), 'expected a state dict, got a int'],
    ['deep nesting', ops(`${'('.repeat(1001)}`), 'expected at most 1000 open marks'],
    ['a tall stack', ops('N'.repeat(1_000_001)), 'expected at most 1000000 stacked values'],
    ['many containers', ops(`](${'}'.repeat(999_000)}e(${'}'.repeat(501_001)}e.`), 'at most 1500000 containers'],
  ])('a pickle with %s', (_, data, message) => {
    expect(errorOf(writeTorch(data)).message).toContain(message);
  });

  const swap = (at: number, value: Py): Py => ({
    persistent: { tuple: (['storage', { global: 'torch FloatStorage' }, '0', 'cpu', 6] as Py[]).with(at, value) },
  });
  const tensorOf = (...args: Parameters<typeof rebuildTensor>): Py => rebuildTensor(...args);
  it.each<[string, Py, string]>([
    [
      'longer than its storage',
      tensorOf(floats, 0, [7], [1]),
      'expected a float32 tensor within a storage of 24 bytes',
    ],
    ['past its storage', tensorOf(floats, 1, [2, 3], [3, 1]), 'from 1 on'],
    ['with long strides', tensorOf(floats, 0, [2, 2], [5, 1]), 'strides [5, 1]'],
    ['of 2^60 elements', tensorOf(floats, 0, [2 ** 30, 2 ** 30], [0, 0]), 'shape [1073741824, 1073741824]'],
    ['of 2^40 repeated elements', tensorOf(floats, 0, [2 ** 40], [0]), 'bytes of repeated elements'],
    ['with a huge stride', tensorOf(floats, 0, [2], [2n ** 53n - 1n]), 'within a storage'],
    [
      'with a huger stride',
      tensorOf(floats, 0, [2], [2n ** 53n]),
      'expected strides from 0 to 2^53 - 1, got 9007199254740992',
    ],
    ['with a negative dimension', tensorOf(floats, 0, [-1], [1]), 'expected dimensions from 0 to 2^53 - 1, got -1'],
    ['with a negative offset', tensorOf(floats, -1, [1], [1]), 'expected a storage offset from 0'],
    ['with a fraction', tensorOf(floats, 0, [1.5], [1]), 'expected dimensions as an int, got float'],
    ['with a flag for a number', tensorOf(floats, 0, [true], [1]), 'expected dimensions as an int, got bool'],
    ['of rank 9', tensorOf(floats, 0, new Array(9).fill(1), new Array(9).fill(1)), 'at most 8 dimensions, got 9'],
    ['with too few strides', tensorOf(floats, 0, [2, 3], [1]), 'expected a stride for each of [2, 3], got [1]'],
    ['of no storage', tensorOf('0', 0, [1], [1]), 'expected a storage, got str'],
    [
      'of a missing record',
      tensorOf(swap(2, '1'), 0, [1], [1]),
      'record "archive/data/1": expected 24 bytes, got no such',
    ],
    ['of a path', tensorOf(swap(2, '../data.pkl'), 0, [1], [1]), 'record "archive/data/../data.pkl"'],
    ['of a shorter record', tensorOf(swap(4, 7), 0, [1], [1]), 'record "archive/data/0": expected 28 bytes, got 24'],
    ['of a longer record', tensorOf(swap(4, 5), 0, [1], [1]), 'record "archive/data/0": expected 20 bytes, got 24'],
    ['of an endless storage', tensorOf(swap(4, 2n ** 52n), 0, [1], [1]), 'expected a storage of less than 2^53 bytes'],
    ['of a long key', tensorOf(swap(2, '0'.repeat(65)), 0, [1], [1]), 'expected a storage key of 1 to 64 characters'],
    ['of a numeric key', tensorOf(swap(2, 0), 0, [1], [1]), 'expected a storage key'],
    ['of another id', tensorOf(swap(0, 'module'), 0, [1], [1]), 'expected the persistent id of a storage'],
    ['of a dtype for a storage', tensorOf(swap(1, { global: 'torch float32' }), 0, [1], [1]), 'got torch.float32'],
    ['of two sizes', tensorOf(swap(4, 5), 0, [1], [1]), 'expected'],
    [
      'with hooks',
      {
        call: { global: 'torch._utils _rebuild_tensor_v2' },
        args: [floats, 0, { tuple: [] }, { tuple: [] }, false, { dict: [['a', 1]] }],
      },
      'expected a tensor without hooks',
    ],
    [
      'of two arguments',
      { call: { global: 'torch._utils _rebuild_tensor_v2' }, args: [floats, 0] },
      'expected 6 or 7 arguments of _rebuild_tensor_v2, got 2',
    ],
    [
      'in a parameter of nothing',
      { call: { global: 'torch._utils _rebuild_parameter' }, args: [null, false, ORDERED_DICT] },
      'expected the tensor of a parameter, got None',
    ],
    [
      'made by itself',
      {
        call: { global: 'torch._tensor _rebuild_from_type_v2' },
        args: [{ global: 'torch._tensor _rebuild_from_type_v2' }, { global: 'torch Tensor' }, { tuple: [] }, null],
      },
      'expected a rebuild function of torch._utils',
    ],
  ])('a tensor %s', (_, bad, message) => {
    expect(errorOf(writeTorch({ dict: [['w', bad]] })).message).toContain(message);
  });

  it('one storage as two types or sizes, one name twice', () => {
    const other = rebuildTensor(storage({ key: '0', type: 'IntStorage', elements: 6 }), 0, [6], [1]);
    const message = 'expected one type and size of storage "0", got two';
    expect(
      errorOf(
        writeTorch({
          dict: [
            ['a', matrix],
            ['b', other],
          ],
        }),
      ).message,
    ).toContain(message);
    const twice: Py = {
      dict: [
        ['w', matrix],
        ['w', matrix],
      ],
    };
    expect(errorOf(writeTorch(twice)).message).toContain('expected every key once, got "w" twice');
    const long = errorOf(writeTorch({ dict: [['w'.repeat(5000), matrix]] }));
    expect(long.message).toContain('expected a name of at most 4096 characters, got 5000');
  });

  it('other files under the name', () => {
    writeFileSync(path, 'GGUF and more');
    expect(errorOf(path).message).toContain('expected a file of torch.save, got other bytes');
    writeFileSync(path, 'version https://git-lfs.github.com/spec/v1\noid sha256:0\n');
    expect(errorOf(path)).toMatchObject({ hint: 'fetch the file itself: git lfs pull' });
    writeFileSync(path, 'x');
    expect(errorOf(path).message).toContain('expected at least 4 bytes, got 1');
    writeFileSync(path, pickle({ dict: [] }));
    expect(errorOf(path).message).toContain("expected PyTorch's magic number, got dict");
  });
});

describe('archives', () => {
  const good = () => torchRecords(pickle({ dict: [['w', matrix]] }), { 0: Buffer.alloc(24, 1) });
  const write = (records: readonly ZipInput[], options: ZipOptions = {}): string => {
    writeFileSync(path, zip(records, options));
    return path;
  };

  it.each<[string, ZipOptions, string]>([
    ['as torch writes', {}, 'archive'],
    ['with zip64 fields', { zip64: true }, 'archive'],
    ['unaligned, with a comment', { align: false, comment: 'PK\x05\x06'.repeat(9) }, 'archive'],
    ['in a folder named otherwise', {}, 'pytorch_model é'],
  ])('are read: %s', async (_, options, name) => {
    write(torchRecords(pickle({ dict: [['w', matrix]] }), { 0: Buffer.alloc(24, 1) }, name), options);
    const index = openCheckpointSync(path);
    expect(Buffer.from((await readTensor(index, 'w')).toBytes())).toEqual(Buffer.alloc(24, 1));
    if (options.align !== false) expect((index.tensors.get('w')?.offset ?? 1) % 64).toBe(0);
  });

  it('without the small records, as PyTorch 1.6 wrote, and with an empty state dict', () => {
    const bare = good().filter(({ name }) => !/byteorder|version/.test(name));
    expect(openCheckpointSync(write(bare)).tensors.size).toBe(1);
    expect(openCheckpointSync(writeTorch({ dict: [] })).tensors.size).toBe(0);
    expect(openCheckpointSync(writeTorch(ORDERED_DICT)).tensors.size).toBe(0);
  });

  const change = (match: string, to: Partial<ZipInput>) =>
    good().map((one) => (one.name.endsWith(match) ? { ...one, ...to } : one));
  it.each<[string, ZipInput[], string]>([
    [
      'compressed',
      change('data/0', { method: 8 }),
      'record "archive/data/0": expected data stored without compression',
    ],
    [
      'encrypted',
      change('data/0', { flags: 1 }),
      'record "archive/data/0": expected plain data, got an encrypted record',
    ],
    ['big-endian', change('byteorder', { data: Buffer.from('big') }), 'expected the byte order little, got "big"'],
    ['too new', change('version', { data: Buffer.from('11') }), 'expected archive version 1 to 10, got "11"'],
    ['of no version', change('/version', { data: Buffer.from('x') }), 'expected archive version 1 to 10, got "x"'],
    ['with overlapping records', change('data/0', { offset: 0 }), 'expected it after byte'],
    ['with a record outside', change('/version', { nbytes: 2000 }), 'expected it before byte'],
    ['with a header elsewhere', change('data.pkl', { offset: 1 }), 'expected its header at byte 1, got other bytes'],
    ['with a header beyond the file', change('data/0', { offset: 2 ** 31 }), 'expected a header before byte'],
    ['with two names of a record', change('data/0', { localName: 'archive/data/1' }), 'expected its header at byte'],
    [
      'with a record twice',
      [...good(), ...good().slice(2, 3)],
      'expected every record once, got "archive/data/0" twice',
    ],
    [
      'with two pickles',
      [...good(), { name: 'other/data.pkl', data: pickle({ dict: [] }) }],
      'with one data.pkl, got 2',
    ],
    ['without a pickle', good().slice(1), 'expected an archive with one data.pkl, got 0'],
    [
      'with a long name',
      change('data/0', { name: `archive/${'x'.repeat(1100)}` }),
      'expected a name of at most 1024 bytes',
    ],
  ])('%s are refused', (_, records, message) => {
    expect(errorOf(write(records)).message).toContain(message);
    expect(errorOf(write(records, { zip64: true })).message).toContain(message);
  });

  it('cut short anywhere are refused', () => {
    const whole = zip(good(), { zip64: true });
    for (let length = 0; length < whole.length; length += 3) {
      writeFileSync(path, whole.subarray(0, length));
      errorOf(path);
    }
    writeFileSync(path, Buffer.concat([whole, Buffer.from('x')]));
    expect(errorOf(path).message).toContain('expected an end record, got none');
  });

  // The file ends with the zip64 end record (56 bytes), its locator (20) and the end record (22).
  it.each<[string, number, number, string]>([
    ['number of a part', -18, 1, 'expected an archive of one part, got several'],
    ['count of a part', -14, 3, 'expected an archive of one part, got several'],
    ['size', -10, 0, 'expected the two end records to agree, got different numbers'],
    ['place of the zip64 record', -34, 0, 'expected a zip64 end record at byte 768, got other bytes'],
    ['mark of the zip64 record', -98, 0, 'expected a zip64 end record at byte'],
    ['length of the zip64 record', -94, 45, 'expected a zip64 end record at byte'],
    ['highest byte of the count', -59, 0xff, 'expected a number below 2^53'],
    ['count', -66, 3, 'bytes, got records of'],
    ['count', -66, 255, 'expected 255 records in the directory, got 4'],
    ['count', -64, 255, 'expected at most 250000 records'],
    ['offset', -50, 1, 'expected a directory that ends at byte'],
  ])('with another %s at byte %i: %i is refused', (_, fromEnd, value, message) => {
    const bytes = zip(good(), { zip64: true });
    bytes.writeUInt8(value, bytes.length + fromEnd);
    writeFileSync(path, bytes);
    expect(errorOf(path).message).toContain(message);
  });
});

describe('the format before PyTorch 1.6', () => {
  const data = Buffer.from(new Float32Array([1, 2, 3, 4, 5, 6]).buffer);
  const legacyFloats = (part: Py = null): Py => ({
    persistent: { tuple: ['storage', { global: 'torch.cuda FloatStorage' }, '17', 'cuda:0', 6, part] },
  });
  const stateDict = (part: Py = null, shape = [6]): Py => ({
    dict: [['w', rebuildTensor(legacyFloats(part), 0, shape, [1])]],
  });

  it('is read, with parts of storages and the first rebuild function as in PyTorch 0.3', async () => {
    const old: Py = {
      call: { global: 'torch._utils _rebuild_tensor' },
      args: [legacyFloats({ tuple: ['18', 2, 3] }), 1, { tuple: [2] }, { tuple: [1] }],
    };
    const pairs: Py = { call: { global: 'collections OrderedDict' }, args: [{ list: [{ list: ['old', old] }] }] };
    writeFileSync(path, legacyFile(pairs, [['17', 6, data]]));
    const index = openCheckpointSync(path);
    expect((await readTensor(index, 'old')).toArray()).toEqual([4, 5]);
    expect(index.metadata.get('pytorch.container')).toBe('legacy');
  });

  it('with pickles longer than the first window, whatever lies at its end', async () => {
    const rest = Array.from({ length: 9000 }, (_, i): [Py, Py] => [`${i}`, [i, i / 3, `${i}`, null][i % 4] as Py]);
    const long: Py = { dict: [['w', rebuildTensor(legacyFloats(), 0, [6], [1])], ...rest] };
    expect(pickle(long).length).toBeGreaterThan(2 * 2 ** 16);
    writeFileSync(path, legacyFile(long, [['17', 6, data]]));
    expect((await readTensor(openCheckpointSync(path), 'w')).toArray()).toEqual([1, 2, 3, 4, 5, 6]);
  });

  it.each<[string, Buffer, string]>([
    [
      'a part outside its storage',
      legacyFile(stateDict({ tuple: ['18', 4, 3] }), [['17', 6, data]]),
      'expected a part within 24 bytes of a storage',
    ],
    [
      'a tensor outside its part',
      legacyFile(stateDict({ tuple: ['18', 4, 2] }, [3]), [['17', 6, data]]),
      'within a storage of 8 bytes',
    ],
    [
      'another count of elements',
      legacyFile(stateDict(), [['17', 5, data]]),
      'storage "17": expected 6 elements, got 5',
    ],
    [
      'a storage cut short',
      legacyFile(stateDict(), [['17', 6, data.subarray(1)]]),
      'storage "17": expected its end within',
    ],
    [
      'a storage that is not there',
      legacyFile(stateDict(), []),
      'storage "17": expected it after the pickles, got none',
    ],
    [
      'a storage twice',
      legacyFile(stateDict(), [
        ['17', 6, data],
        ['17', 6, data],
      ]),
      'storage "17": expected a storage of the pickle, got it twice',
    ],
    [
      'a storage of nobody',
      legacyFile(stateDict(), [
        ['17', 6, data],
        ['18', 6, data],
      ]),
      'storage "18": expected a storage of the pickle, got none',
    ],
    ['another magic number', pickle({ tuple: [] }), "expected PyTorch's magic number, got tuple"],
    [
      'another version',
      Buffer.concat([pickle(0x1950a86a20f9469cfc6cn), pickle(1002)]),
      'expected format version 1001, got another number',
    ],
    [
      'another machine',
      Buffer.concat([pickle(0x1950a86a20f9469cfc6cn), pickle(1001), pickle({ dict: [['little_endian', false]] })]),
      'expected numbers of a little-endian machine, got dict',
    ],
    ['one pickle', pickle(0x1950a86a20f9469cfc6cn), 'expected 1 more bytes, got 0'],
  ])('%s is refused', (_, bytes, message) => {
    writeFileSync(path, bytes);
    expect(errorOf(path).message).toContain(message);
  });
});

describe('gatherStrided', () => {
  /** Element by element, from the definition of strides. */
  function gatherPlainly(
    data: Uint8Array,
    shape: readonly number[],
    strides: readonly number[],
    width: number,
  ): number[] {
    let starts = [0];
    for (const [axis, dim] of shape.entries()) {
      starts = starts.flatMap((start) => Array.from({ length: dim }, (_, i) => start + i * (strides[axis] as number)));
    }
    return starts.flatMap((start) => [...data.subarray(start * width, (start + 1) * width)]);
  }

  it('gives the elements in order through windows of any size', async () => {
    const views = fc.record({
      axes: fc.array(fc.record({ dim: fc.integer({ min: 0, max: 5 }), stride: fc.integer({ min: 0, max: 12 }) }), {
        maxLength: 4,
      }),
      width: fc.constantFrom(1, 2, 4, 8),
      windowBytes: fc.integer({ min: 8, max: 200 }),
    });
    await fc.assert(
      fc.asyncProperty(views, async ({ axes, width, windowBytes }) => {
        const [shape, strides] = [axes.map(({ dim }) => dim), axes.map(({ stride }) => stride)];
        const span = shape.includes(0) ? 0 : 1 + axes.reduce((sum, { dim, stride }) => sum + (dim - 1) * stride, 0);
        const data = Uint8Array.from({ length: span * width }, (_, i) => i * 31);
        const read = async (window: Uint8Array, position: number) => {
          expect(window.length).toBeLessThanOrEqual(windowBytes);
          expect(position + window.length).toBeLessThanOrEqual(data.length);
          window.set(data.subarray(position, position + window.length));
        };
        const got = await gatherStrided({ shape, strides, elementBytes: width }, read, windowBytes);
        expect([...got]).toEqual(gatherPlainly(data, shape, strides, width));
      }),
      { numRuns: 500 },
    );
  });
});
