/**
 * What PyTorch's pickles lie in, every rule by name: the zip archive, and the file before PyTorch 1.6. The pickle
 * itself is pytorch-refused.test.ts.
 */
import { writeFileSync } from 'node:fs';
import { openCheckpointSync, readTensor } from '@metashard/core';
import '@metashard/cpu';
import { describe, expect, it } from 'vitest';
import {
  legacyFile,
  ORDERED_DICT,
  type Py,
  pickle,
  rebuildTensor,
  torchRecords,
  type ZipInput,
  type ZipOptions,
  zip,
} from './torch-files.js';
import { errorOf, matrix, path, writeTorch } from './torch-files-on-disk.js';

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
