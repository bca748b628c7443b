/**
 * PyTorch files that are refused: every rule of the pickle and of its tensors by name, and that nothing runs. Damaged
 * containers are pytorch-containers.test.ts.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { legacyFile, ORDERED_DICT, type Py, pickle, rebuildTensor, storage } from './torch-files.js';
import { errorOf, fixtures, floats, matrix, path, writeTorch } from './torch-files-on-disk.js';

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
