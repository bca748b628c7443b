/**
 * Files by the native addon: ranges of bytes, and weights loaded in windows, cast, quantized or packed on the way.
 * Reading checkpoints by name is checkpoint.test.ts.
 */
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DTYPES, type DType, float32ToFloat16Bits, LOAD_MODES, opSignature, packedInt8Bytes } from '@metashard/core';
import { describe, expect, test } from 'vitest';
import {
  addon,
  EMPTY,
  openContext,
  randomNumbers,
  temporaryFolder,
  tensors,
  tryCall,
  type Words,
} from './addon-calls.js';

const folder = temporaryFolder();

describe('files', () => {
  const write = (name: string, bytes: Uint8Array): string => {
    const path = join(folder, name);
    writeFileSync(path, bytes);
    return path;
  };

  test('reads ranges, refuses what is no regular file', () => {
    const file = addon.openFile(write('ten', Uint8Array.of(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)));
    const bytes = new Uint8Array(4);
    addon.readFile(file, 6, bytes);
    expect([...bytes]).toEqual([6, 7, 8, 9]);
    expect(addon.fileBytes(file)).toBe(10);
    expect(tryCall(() => addon.readFile(file, 7, bytes))?.message).toMatch(/ten: expected a range within its 10 bytes/);
    addon.closeFile(file);
    expect(tryCall(() => addon.fileBytes(file))?.message).toMatch(/live file/);
    expect(tryCall(() => addon.closeFile(file))?.status).toBe(1);
    expect(tryCall(() => addon.openFile(folder))?.message).toMatch(/expected a regular file, got a directory/);
    expect(tryCall(() => addon.openFile('/dev/zero'))?.message).toMatch(/expected a regular file/);
    expect(tryCall(() => addon.openFile(join(folder, 'none')))).toMatchObject({ nativeCode: 2 });
    expect(tryCall(() => addon.openFile('a\0b'))?.message).toMatch(/without NUL/);
  });

  test('a file cut short after it was opened is an error with path and offset', () => {
    const path = write('cut', new Uint8Array(100));
    const file = addon.openFile(path);
    truncateSync(path, 60);
    expect(tryCall(() => addon.readFile(file, 50, new Uint8Array(50)))?.message).toBe(
      `readFile: ${path}: expected 50 bytes at offset 50, got 10: the file is cut short`,
    );
    addon.closeFile(file);
  });

  test('loadWeight: windows of a large tensor give what one op on the whole gives', () => {
    const context = openContext();
    const [rows, columns] = [2500, 1003]; // several windows, ragged in both directions
    const random = randomNumbers(3);
    const values = Float32Array.from({ length: rows * columns }, () => random() - 0.5);
    const halves = Uint16Array.from(values, (value) => float32ToFloat16Bits(value));
    const path = write('halves', new Uint8Array([...new Uint8Array(6), ...new Uint8Array(halves.buffer)]));
    const file = addon.openFile(path);
    const source = addon.alloc(context, halves.byteLength, 0);
    addon.write(source, 0, halves);
    const input = tensors({ buffer: source, dtype: 'float16', shape: [rows, columns] });

    for (const packed of [false, true]) {
      const bytes = packed ? packedInt8Bytes(rows, columns) : rows * columns;
      const [expected, got] = [0, 1].map(() => ({
        CB: addon.alloc(context, bytes, 0),
        SCB: addon.alloc(context, rows * 4, 0),
      })) as [{ CB: number; SCB: number }, { CB: number; SCB: number }];
      const CB = (buffer: number): Words => ({ buffer, dtype: 'int8', packed, shape: [rows, columns] });
      const quantize = opSignature('quantize_weight').code;
      const outputs = tensors(CB(expected.CB), { buffer: expected.SCB, shape: [rows] });
      const need = addon.opScratch(context, quantize, input, outputs, Float64Array.of(0));
      const scratch = need === 0 ? 0 : addon.alloc(context, need, 3);
      addon.callOp(context, quantize, input, outputs, Float64Array.of(0), scratch);
      const scales = tensors({ buffer: got.SCB, shape: [rows] });
      const mode = LOAD_MODES.quantize;
      const read = addon.loadWeight(context, file, 6, 1, rows, columns, mode, tensors(CB(got.CB)), scales, false);
      expect(read).toBe(halves.byteLength);
      for (const [one, other, size] of [
        [expected.CB, got.CB, bytes],
        [expected.SCB, got.SCB, rows * 4],
      ] as const) {
        const [a, b] = [Buffer.alloc(size), Buffer.alloc(size)];
        addon.read(one, 0, a);
        addon.read(other, 0, b);
        expect(a.equals(b)).toBe(true);
      }
    }

    const floats = addon.alloc(context, values.byteLength, 0);
    const to = tensors({ buffer: floats, shape: [rows, columns] });
    addon.loadWeight(context, file, 6, 1, rows, columns, LOAD_MODES.convert, to, EMPTY, false);
    const cast = tensors({ buffer: addon.alloc(context, values.byteLength, 0), shape: [rows, columns] });
    addon.callOp(context, opSignature('cast').code, input, cast, EMPTY, 0);
    const [a, b] = [Buffer.alloc(values.byteLength), Buffer.alloc(values.byteLength)];
    addon.read(floats, 0, a);
    addon.read(cast[0] as number, 0, b);
    expect(a.equals(b)).toBe(true);

    truncateSync(path, 3_000_000);
    const short = tryCall(() => addon.loadWeight(context, file, 6, 1, rows, columns, 0, to, EMPTY, false));
    expect(short?.message).toMatch(/halves: expected \d+ bytes at offset \d+, got \d+: the file is cut short$/);
  });

  test('loadWeight: bytes that need no op, 1-D and empty tensors', () => {
    const context = openContext();
    const file = addon.openFile(
      write(
        'plain',
        Uint8Array.from({ length: 64 }, (_, i) => i),
      ),
    );
    const buffer = addon.alloc(context, 64, 0);
    const load = (dtype: DType, shape: number[], offset = 0, mode = 0) =>
      addon.loadWeight(
        context,
        file,
        offset,
        DTYPES[dtype].code,
        shape.length === 1 ? 1 : (shape[0] as number),
        shape.at(-1) as number,
        mode,
        tensors({ buffer, dtype, shape }),
        EMPTY,
        false,
      );
    expect(load('int64', [8])).toBe(64);
    const bytes = new Uint8Array(64);
    addon.read(buffer, 0, bytes);
    expect([...bytes]).toEqual([...bytes.keys()]);
    expect(load('int8', [4, 4], 3, LOAD_MODES.int8)).toBe(16);
    addon.read(buffer, 0, bytes);
    expect([...bytes.subarray(0, 3)]).toEqual([3, 4, 5]);
    expect(load('bfloat16', [0, 5], 64)).toBe(0);
    expect(load('bool', [3, 0])).toBe(0);
  });

  test('loadWeight: packs int8 in windows as pack_int8 does at once', () => {
    const context = openContext();
    const [rows, columns] = [4499, 1000];
    const values = Int8Array.from({ length: rows * columns }, (_, i) => (i * 7) % 251);
    const file = addon.openFile(write('int8', new Uint8Array(values.buffer)));
    const plain = addon.alloc(context, values.length, 0);
    addon.write(plain, 0, values);
    const size = packedInt8Bytes(rows, columns);
    const packed = [0, 1].map(() => addon.alloc(context, size, 0)) as [number, number];
    const matrix = (buffer: number, isPacked: boolean) =>
      tensors({ buffer, dtype: 'int8', packed: isPacked, shape: [rows, columns] });
    addon.callOp(context, opSignature('pack_int8').code, matrix(plain, false), matrix(packed[0], true), EMPTY, 0);
    addon.loadWeight(context, file, 0, 3, rows, columns, LOAD_MODES.int8, matrix(packed[1], true), EMPTY, false);
    const [a, b] = [Buffer.alloc(size), Buffer.alloc(size)];
    addon.read(packed[0], 0, a);
    addon.read(packed[1], 0, b);
    expect(a.equals(b)).toBe(true);
  });

  test('loadWeight refuses dtypes, shapes and ranges that do not fit', () => {
    const context = openContext();
    const file = addon.openFile(write('small', new Uint8Array(64)));
    const buffer = addon.alloc(context, 64, 0);
    const to = (dtype: DType, shape: number[]) => tensors({ buffer, dtype, shape });
    const load = (dtype: DType, rows: number, columns: number, mode: number, words: Float64Array, offset = 0) =>
      tryCall(() =>
        addon.loadWeight(context, file, offset, DTYPES[dtype].code, rows, columns, mode, words, EMPTY, false),
      )?.message;
    expect(load('int32', 1, 4, 0, to('float32', [4]))).toMatch(/sourceDtype/);
    expect(load('float32', 1, 4, 1, to('int8', [1, 4]))).toMatch(/scales/);
    expect(load('float32', 2, 4, 0, to('float32', [2, 3]))).toMatch(/destination/);
    expect(load('float32', 2, 4, 0, to('float32', [2, 4]), 40)).toMatch(/small: expected a range within its 64 bytes/);
    expect(load('float32', 2 ** 40, 2 ** 40, 0, to('float32', [1]))).toMatch(/fits a memory/);
    expect(load('int8', 2, 4, 2, to('int8', [3, 4]))).toMatch(/destination/);
    expect(load('float32', 2, 4, 3, to('float32', [2, 4]))).toMatch(/mode/);
  });
});
