/**
 * The native addon over the CPU backend: ids, ranges, budgets, files, loading of weights, programs, threads. A wrong argument must throw and never
 * crash: thousands of garbage calls and mutated programs say so. What ops compute is the case table's matter.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import {
  DTYPES,
  type DType,
  float32ToFloat16Bits,
  LOAD_MODES,
  MEMORY_KINDS,
  type NativeAddon,
  native,
  OP_NAMES,
  opSignature,
  packedInt8Bytes,
} from '@metashard/core';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';

const PLUGIN = fileURLToPath(new URL('../packages/cpu/build/Release/metashard_cpu.so', import.meta.url));
const ADDON = fileURLToPath(new URL('../packages/core/build/Release/metashard_core.node', import.meta.url));
const MIB = 1024 * 1024;
const EMPTY = new Float64Array(0);

let addon: NativeAddon;
let folder: string;
const opened: number[] = [];

beforeAll(() => {
  addon = native();
  addon.loadBackend('cpu', PLUGIN);
  folder = mkdtempSync(join(tmpdir(), 'metashard-addon-'));
});
afterEach(() => {
  for (const context of opened.splice(0)) tryCall(() => addon.closeContext(context));
});
afterAll(() => rmSync(folder, { recursive: true }));

function openContext(budgetBytes = 0, device = 0): number {
  const context = addon.openContext('cpu', device, budgetBytes);
  opened.push(context);
  return context;
}

/** What a call threw, or undefined. */
function tryCall(run: () => unknown): (Error & { status?: number; nativeCode?: number; line?: number }) | undefined {
  try {
    run();
  } catch (error) {
    return error as Error;
  }
  return undefined;
}

/** A seeded generator of numbers in [0, 1): Park & Miller's "minimal standard" (1988). */
function randomNumbers(seed: number): () => number {
  let state = seed % 2147483647 || 1;
  return () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
}

interface Words {
  buffer: number;
  offset?: number;
  dtype?: DType;
  packed?: boolean;
  shape: number[];
  strides?: number[];
}

function shapeWords({ dtype = 'float32', packed = false, shape, strides }: Words): number[] {
  const rowMajor = shape.map((_, i) => shape.slice(i + 1).reduce((product, dim) => product * dim, 1));
  const four = (list: readonly number[]) => [0, 1, 2, 3].map((i) => list[i] ?? 0);
  return [DTYPES[dtype].code, packed ? 1 : 0, shape.length, ...four(shape), ...four(strides ?? rowMajor)];
}

/** TENSOR_WORDS encodings of tensors; null is an absent one. */
function tensors(...list: (Words | null)[]): Float64Array {
  return Float64Array.from(
    list.flatMap((words) =>
      words === null ? new Array<number>(13).fill(0) : [words.buffer, words.offset ?? 0, ...shapeWords(words)],
    ),
  );
}

const inBuffer = (words: Words): number[] => [0, words.buffer, words.offset ?? 0, ...shapeWords(words)];
const inBinding = (words: Words): number[] => [1, words.buffer, words.offset ?? 0, ...shapeWords(words)];

function readFloats(buffer: number, count: number, offset = 0): number[] {
  const values = new Float32Array(count);
  addon.read(buffer, offset, values);
  return [...values];
}

function floatsIn(context: number, values: readonly number[]): number {
  const buffer = addon.alloc(context, values.length * 4, 0);
  addon.write(buffer, 0, Float32Array.from(values));
  return buffer;
}

const ADD = opSignature('add').code;

describe('contract', () => {
  test('opTable is ops.ts', () => {
    const rows = OP_NAMES.map((name) => {
      const { code, inputs, outputs, attributes } = opSignature(name);
      return [name, code, inputs.length, outputs.length, attributes.length];
    });
    expect(addon.opTable()).toEqual(rows);
  });

  test('processMemory and threadId are the kernel’s numbers', () => {
    const { residentBytes, peakResidentBytes } = addon.processMemory();
    expect(residentBytes).toBeGreaterThan(10 * MIB);
    expect(peakResidentBytes).toBeGreaterThanOrEqual(residentBytes);
    expect(addon.threadId()).toBe(process.pid);
  });

  test('errors carry status, nativeCode, file and line', () => {
    const error = tryCall(() => addon.free(12345));
    expect(error).toMatchObject({ status: 1, nativeCode: 0, file: expect.stringMatching(/^packages\/core\/native/) });
    expect(error?.line).toBeGreaterThan(0);
    expect(error?.message).toBe('free: buffer: expected the id of a live buffer, got 12345');
  });

  test('backends: loading twice is one, missing and wrong files are status 3', () => {
    addon.loadBackend('cpu', PLUGIN);
    expect(tryCall(() => addon.loadBackend('nothing', join(folder, 'none.so')))).toMatchObject({ status: 3 });
    expect(tryCall(() => addon.loadBackend('addon', ADDON))).toMatchObject({ status: 3 });
    expect(tryCall(() => addon.loadBackend('other', PLUGIN))).toMatchObject({ status: 3 });
    expect(tryCall(() => addon.deviceCount('nothing'))).toMatchObject({ status: 3 });
    expect(tryCall(() => addon.deviceInfo('cpu', 1e6))?.message).toMatch(/^deviceInfo: /);
    expect(JSON.parse(addon.describeBackend('cpu'))).toBeTypeOf('object');
    expect(addon.deviceInfo('cpu', 0)).toMatchObject({ hostAddressable: true, emulated: false });
  });
});

describe('ids', () => {
  test('freed, foreign and invented ids throw', () => {
    const context = openContext();
    const buffer = addon.alloc(context, 64, 0);
    addon.free(buffer);
    for (const id of [buffer, context, 0, -1, 1.5, Number.NaN, 2 ** 53, 1e300, 7, buffer + 8]) {
      expect(tryCall(() => addon.free(id))?.message, `free ${id}`).toMatch(/live buffer/);
      expect(tryCall(() => addon.bufferBytes(id))?.message, `bufferBytes ${id}`).toMatch(/live buffer/);
    }
    const again = addon.alloc(context, 64, 0);
    expect(again).not.toBe(buffer);
    expect(tryCall(() => addon.read(buffer, 0, new Uint8Array(1)))?.message).toMatch(/live buffer/);
    expect(tryCall(() => addon.closeContext(again))?.message).toMatch(/live context/);
  });

  test('closing a context ends everything it owned', () => {
    const context = openContext();
    const buffer = addon.alloc(context, 64, 0);
    const program = addon.createProgram(context, Float64Array.of(0, 0, 0));
    addon.closeContext(context);
    expect(tryCall(() => addon.bufferBytes(buffer))?.status).toBe(1);
    expect(tryCall(() => addon.runProgram(program, new Int32Array(3), EMPTY, 0, 0))?.status).toBe(1);
    expect(tryCall(() => addon.closeContext(context))?.status).toBe(1);
    expect(tryCall(() => addon.alloc(context, 1, 0))?.status).toBe(1);
  });

  test('generations: a thousand reuses of a slot give a thousand ids', () => {
    const context = openContext();
    const seen = new Set<number>();
    for (let i = 0; i < 1000; i++) {
      const buffer = addon.alloc(context, 1, 0);
      seen.add(buffer);
      addon.free(buffer);
    }
    expect(seen.size).toBe(1000);
  });
});

describe('bytes', () => {
  test('every view writes and reads back, also over shared memory', () => {
    const context = openContext();
    const buffer = addon.alloc(context, 1024, 0);
    const shared = new Uint16Array(new SharedArrayBuffer(8)).fill(513);
    const views = [
      Int8Array.of(-1, 2),
      Uint8ClampedArray.of(1, 2),
      Float64Array.of(1.5),
      BigInt64Array.of(-5n),
      shared,
    ];
    for (const view of [...views, new DataView(Float32Array.of(2.5, 3.5).buffer)]) {
      addon.write(buffer, 8, view);
      const bytes = new Uint8Array(view.byteLength);
      addon.read(buffer, 8, bytes);
      expect([...bytes]).toEqual([...new Uint8Array(view.buffer, view.byteOffset, view.byteLength)]);
    }
  });

  test('ranges: the last byte is in, the next one is not', () => {
    const context = openContext();
    const a = addon.alloc(context, 100, 0);
    const b = addon.alloc(context, 50, 0);
    addon.write(a, 99, new Uint8Array(1));
    addon.write(a, 100, new Uint8Array(0));
    addon.copy(b, 0, a, 50, 50);
    addon.zero(a, 0, 100);
    const wrong: (() => void)[] = [
      () => addon.write(a, 100, new Uint8Array(1)),
      () => addon.write(a, 101, new Uint8Array(0)),
      () => addon.read(a, 2 ** 53 - 1, new Uint8Array(2)),
      () => addon.zero(a, 1, 100),
      () => addon.zero(a, -1, 1),
      () => addon.zero(a, 0.5, 1),
      () => addon.copy(b, 1, a, 0, 50),
      () => addon.copy(b, 0, a, 51, 50),
      () => addon.alloc(context, -1, 0),
      () => addon.alloc(context, Number.NaN, 0),
      () => addon.alloc(context, 1, MEMORY_KINDS.length),
    ];
    for (const [i, run] of wrong.entries()) expect(tryCall(run)?.status, `call ${i}`).toBe(1);
  });

  test('copies within and between contexts', () => {
    const [one, two] = [openContext(), openContext(0, 0)];
    const a = floatsIn(one, [1, 2, 3, 4]);
    const b = addon.alloc(two, 16, 0);
    addon.copy(b, 4, a, 0, 12);
    addon.copy(a, 4, a, 0, 12); // overlapping
    addon.synchronize(two);
    expect(readFloats(b, 3, 4)).toEqual([1, 2, 3]);
    expect(readFloats(a, 4)).toEqual([1, 1, 2, 3]);
  });

  test('a detached view is empty', () => {
    const buffer = addon.alloc(openContext(), 8, 0);
    const view = new Uint8Array(8);
    structuredClone(view.buffer, { transfer: [view.buffer] });
    addon.write(buffer, 8, view);
  });
});

describe('budgets and accounting', () => {
  test('current and peak bytes in all and by kind', () => {
    const context = openContext(1000);
    const weights = addon.alloc(context, 600, MEMORY_KINDS.indexOf('weights'));
    const cache = addon.alloc(context, 300, MEMORY_KINDS.indexOf('kv_cache'));
    const error = tryCall(() => addon.alloc(context, 101, 2));
    expect(error).toMatchObject({ status: 2, message: 'alloc: budget: expected at most 100 of 1000 bytes, got 101' });
    addon.free(weights);
    addon.alloc(context, 700, MEMORY_KINDS.indexOf('scratch'));
    addon.free(cache);
    expect(addon.contextStats(context)).toEqual({
      budgetBytes: 1000,
      currentBytes: 700,
      peakBytes: 1000,
      current: [0, 0, 0, 700, 0],
      peak: [600, 300, 0, 700, 0],
    });
  });

  test('a program holds its buffers until it is freed', () => {
    const context = openContext(100);
    const buffer = floatsIn(context, [1, 2]);
    const tensor = inBuffer({ buffer, shape: [1, 2] });
    const program = addon.createProgram(context, Float64Array.of(1, 1, 0, ...tensor, ADD, 2, 1, 0, 0, 0, 0));
    addon.free(buffer);
    addon.runProgram(program, new Int32Array(3), EMPTY, 0, 1);
    expect(addon.contextStats(context).currentBytes).toBe(8);
    addon.freeProgram(program);
    expect(addon.contextStats(context).currentBytes).toBe(0);
    expect(tryCall(() => addon.freeProgram(program))?.status).toBe(1);
  });

  test('memory that no machine has is status 2', () => {
    expect(tryCall(() => addon.alloc(openContext(), 2 ** 52, 0))?.status).toBe(2);
  });
});

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

describe('programs', () => {
  const dims = (tokens: number) => Int32Array.of(tokens, 1, 1);

  /** out = (a + b) + b with a symbolic number of rows; a and out bound, b in a buffer. */
  function addTwice(context: number, b: number): number {
    const rows = (buffer: number, offset = 0): Words => ({ buffer, offset, shape: [-1, 2], strides: [2, 1] });
    return addon.createProgram(
      context,
      Float64Array.from([
        ...[3, 2, 0],
        ...inBinding(rows(0)),
        ...inBuffer(rows(b)),
        ...inBinding(rows(1, 8)),
        ...[ADD, 2, 1, 0, 0, 1, 2],
        ...[ADD, 2, 1, 0, 2, 1, 2],
      ]),
    );
  }

  test('resolves symbols, bindings and offsets anew when they change', () => {
    const context = openContext();
    const b = floatsIn(context, [10, 20, 30, 40, 50, 60]);
    const program = addTwice(context, b);
    const a = floatsIn(context, [1, 2, 3, 4, 5, 6]);
    const out = addon.alloc(context, 64, 2);
    const calls = addon.opCalls(ADD);
    addon.runProgram(program, dims(2), Float64Array.of(a, 0, out, 0), 0, 2);
    expect(readFloats(out, 4, 8)).toEqual([21, 42, 63, 84]);
    addon.runProgram(program, dims(1), Float64Array.of(a, 8, out, 0), 0, 1);
    expect(readFloats(out, 4, 8)).toEqual([13, 24, 63, 84]);
    addon.runProgram(program, dims(0), Float64Array.of(a, 0, out, 0), 0, 2);
    addon.runProgram(program, dims(3), Float64Array.of(out, 8, a, 0), 0, 0);
    expect(addon.opCalls(ADD) - calls).toBe(5);
    const other = addon.alloc(context, 64, 2);
    addon.runProgram(program, dims(1), Float64Array.of(a, 0, other, 16), 0, 2);
    expect(readFloats(other, 2, 24)).toEqual([21, 42]);
  });

  test('errors name the op, and later runs are right again', () => {
    const context = openContext();
    const program = addTwice(context, floatsIn(context, [10, 20]));
    const [a, out] = [floatsIn(context, [1, 2, 3, 4]), addon.alloc(context, 64, 2)];
    const bindings = Float64Array.of(a, 0, out, 0);
    const message = (run: () => void) => tryCall(run)?.message;
    const run = (
      ...[d = dims(1), words = bindings, first = 0, end = 2]: [Int32Array?, Float64Array?, number?, number?]
    ) => message(() => addon.runProgram(program, d, words, first, end));
    expect(run(dims(2))).toMatch(/^runProgram: op 0 \(add\): input 1: expected a tensor within its buffer of 8 bytes/);
    expect(run(dims(1), Float64Array.of(a, 0, 0, 0), 1)).toMatch(/^runProgram: op 1 \(add\): input 0: .*binding 1/);
    expect(run(dims(1), Float64Array.of(a, 0))).toMatch(/2 pairs/);
    expect(run(dims(1), Float64Array.of(a, 2, out, 0))).toMatch(/that 4 divides/);
    expect(run(dims(1), Float64Array.of(a, 2 ** 52, out, 0))).toMatch(/within its buffer/);
    expect(run(dims(-1))).toMatch(/dims/);
    expect(run(new Int32Array(2))).toMatch(/dims/);
    expect(run(dims(1), bindings, 1, 3)).toMatch(/end/);
    expect(run(dims(1), bindings, 2, 1)).toMatch(/first/);
    expect(run(dims(1), Float64Array.of(floatsIn(openContext(), [1, 2]), 0, out, 0))).toMatch(/program's context/);
    expect(run()).toBeUndefined();
    expect(readFloats(out, 2, 8)).toEqual([21, 42]);
    addon.free(out);
    expect(run()).toMatch(/binding 1: expected the id of a live buffer/);
  });

  test('scratch: too little is refused before the op runs', () => {
    const context = openContext();
    const [K, N] = [70, 20];
    const buffer = (bytes: number) => addon.alloc(context, bytes, 0);
    const [x, CB, out] = [buffer(K * 4), buffer(K * N), buffer(N * 4)];
    const code = opSignature('int8_matmul').code;
    const inputs = tensors({ buffer: x, dtype: 'int8', shape: [1, K] }, { buffer: CB, dtype: 'int8', shape: [N, K] });
    const outputs = tensors({ buffer: out, dtype: 'int32', shape: [1, N] });
    const need = addon.opScratch(context, code, inputs, outputs, EMPTY);
    const call = (scratch: number) => tryCall(() => addon.callOp(context, code, inputs, outputs, EMPTY, scratch));
    expect(call(need === 0 ? 0 : buffer(need))).toBeUndefined();
    if (need > 0) expect(call(buffer(need - 1))?.message).toMatch(/^callOp: int8_matmul: scratch: expected at least/);
    expect(call(addon.alloc(openContext(), need, 0))?.message).toMatch(/of this context/);
  });

  test('encodings that cannot be right are refused', () => {
    const context = openContext();
    const a = floatsIn(context, [1, 2]);
    const create = (...code: number[]) => tryCall(() => addon.createProgram(context, Float64Array.from(code)))?.message;
    const t = inBuffer({ buffer: a, shape: [1, 2] });
    const op = [ADD, 2, 1, 0, 0, 0, 0];
    expect(create(1, 1, 0, ...t, ...op)).toBeUndefined();
    expect(create()).toMatch(/at least 3/);
    expect(create(2, 1, 0, ...t, ...op)).toMatch(/2 tensors/);
    expect(create(1e9, 1, 0, ...t)).toMatch(/tensor count/);
    expect(create(1, 2, 0, ...t, ...op)).toMatch(/2 ops|op 1/);
    expect(create(1, 1, 0, ...t, ...op, 0)).toMatch(/expected 24 numbers, got 25/);
    expect(create(1, 1, 0, ...t, 99, 2, 1, 0, 0, 0, 0)).toMatch(/op code/);
    expect(create(1, 1, 0, ...t, ADD, 3, 1, 0, 0, 0, 0, 0)).toMatch(/input count/);
    expect(create(1, 1, 0, ...t, ADD, 2, 1, 0, 0, 1, 0)).toMatch(/tensor index/);
    expect(create(1, 1, 7, ...t, ...op)).toMatch(/scratch/);
    expect(create(1, 1, 0, ...inBuffer({ buffer: a, shape: [2, 2] }), ...op)).toMatch(/within its buffer/);
    expect(create(1, 1, 0, ...inBuffer({ buffer: a, shape: [1, 2], offset: 2 }), ...op)).toMatch(/that 4 divides/);
    expect(create(1, 1, 0, ...inBuffer({ buffer: a, shape: [-4, 2] }), ...op)).toMatch(/dimension/);
    expect(create(1, 1, 0, ...inBuffer({ buffer: a, shape: [2 ** 52, 2 ** 52], strides: [0, 0] }), ...op)).toMatch(
      /within/,
    );
    expect(create(1, 1, 0, 2, ...t.slice(1), ...op)).toMatch(/absent/);
    expect(create(1, 1, 0, ...inBuffer({ buffer: a, dtype: 'float32', packed: true, shape: [1, 2] }), ...op)).toMatch(
      /int8 matrix/,
    );
  });

  test('4000 mutated programs: each is refused, fails or runs', () => {
    const seed = Date.now() % 1e6;
    const random = randomNumbers(seed);
    const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;
    const context = openContext(64 * MIB);
    const memory = addon.alloc(context, 1 << 16, 0);
    addon.zero(memory, 0, 1 << 16);
    const scratch = addon.alloc(context, 1 << 20, 3);
    const good = mutationSeed(memory, scratch);
    const strange = [0, 1, 2, 3, 4, 8, 16, 22, 64, 255, 4096, 65535, -1, -2, -3, -4, 0.5, 2 ** 31, 2 ** 53, 1e300];
    const whole = addon.createProgram(context, Float64Array.from(good));
    addon.runProgram(whole, dims(3), Float64Array.of(memory, 0), 0, good[1] as number);
    const outcomes = { refused: 0, failed: 0, ran: 0 };
    for (let round = 0; round < 4000; round++) {
      const code = Float64Array.from(good);
      for (let n = 1 + Math.floor(random() * 3); n > 0; n--) {
        const at = Math.floor(random() * code.length);
        code[at] = random() < 0.5 ? pick([...strange, Number.NaN, memory]) : (code[at] as number) + pick([-1, 1]);
      }
      let program = 0;
      if (tryCall(() => (program = addon.createProgram(context, code))) !== undefined) {
        outcomes.refused++;
        continue;
      }
      const run = () =>
        addon.runProgram(program, dims(pick([0, 1, 3])), Float64Array.of(memory, 0), 0, code[1] as number);
      outcomes[tryCall(run) === undefined ? 'ran' : 'failed']++;
      addon.freeProgram(program);
    }
    expect(outcomes.refused, `seed ${seed}`).toBeGreaterThan(500);
    expect(outcomes.failed, `seed ${seed}`).toBeGreaterThan(100);
    expect(outcomes.ran, `seed ${seed}`).toBeGreaterThan(100);
  });
});

/** A program over several ops in one buffer, half of its tensors bound. */
function mutationSeed(memory: number, scratch: number): number[] {
  const tokens = (dtype: DType, offset: number, ...rest: number[]) =>
    inBinding({ buffer: 0, offset, dtype, shape: [-1, ...rest], strides: [rest[0] ?? 1, 1] });
  const fixed = (dtype: DType, offset: number, ...shape: number[]) =>
    inBuffer({ buffer: memory, offset, dtype, shape });
  const program = [
    tokens('int32', 0), // 0 ids
    fixed('float32', 1024, 8, 16), // 1 table
    tokens('float32', 4096, 16), // 2 x
    fixed('float32', 2048, 16), // 3 weight and bias
    tokens('float32', 8192, 16), // 4 y
    fixed('float16', 3072, 8, 16), // 5 linear weight
    tokens('float32', 12288, 8), // 6 logits
    tokens('int32', 16384), // 7 out
    tokens('int8', 20480, 16), // 8 CA
    tokens('float32', 24576), // 9 SCA
    fixed('int32', 28672, 17), // 10 outlier columns
    fixed('int8', 32768, 8, 16), // 11 CB
    fixed('float32', 36864, 8), // 12 SCB
    [2, ...new Array<number>(13).fill(0)], // 13 absent
  ];
  const op = (name: (typeof OP_NAMES)[number], inputs: number[], outputs: number[], attributes: number[] = []) => {
    const counts = [inputs.length, outputs.length, attributes.length];
    return [opSignature(name).code, ...counts, ...inputs, ...outputs, ...attributes];
  };
  const ops = [
    op('embedding', [0, 1], [2]),
    op('layer_norm', [2, 3, 3], [4], [1e-5]),
    op('int8_quantize', [4], [8, 9, 10], [6, 0]),
    op('int8_linear', [4, 8, 9, 10, 11, 12, 13], [6], [6, 0]),
    op('linear', [4, 5, 13], [6]),
    op('activation', [6], [6], [2]),
    op('add', [2, 4], [4]),
    op('argmax', [6], [7]),
  ];
  return [program.length, ops.length, scratch, ...program.flat(), ...ops.flat()];
}

test('20000 calls with garbage arguments throw or return', () => {
  const random = randomNumbers(11);
  const context = openContext(MIB);
  const buffer = addon.alloc(context, 256, 0);
  const path = join(folder, 'garbage');
  writeFileSync(path, new Uint8Array(64));
  const file = addon.openFile(path);
  const program = addon.createProgram(context, Float64Array.of(0, 0, 0));
  const values: unknown[] = [
    ...[undefined, null, true, '', 'cpu', 'threads', path, Symbol('s'), 1n, {}, [], () => 0, new Date()],
    ...[0, 1, 2, 3, 16, 64, -1, 0.5, 1e9, 2 ** 40, 2 ** 53, 1e300, Number.NaN, Number.POSITIVE_INFINITY],
    ...[context, buffer, file, program, context, buffer, file, program],
    ...[
      new Uint8Array(8),
      new Float64Array(13),
      new Int32Array(3),
      new DataView(new ArrayBuffer(4)),
      new ArrayBuffer(4),
    ],
    tensors({ buffer, shape: [2, 2] }),
    tensors({ buffer, shape: [2, 2] }, { buffer, shape: [2, 2], offset: 64 }),
  ];
  // Not the ones that would close what the others need; those have their own tests above.
  const spared = ['closeContext', 'closeFile', 'free', 'freeProgram', 'configureBackend'];
  const functions = Object.entries(addon).filter(([name, f]) => typeof f === 'function' && !spared.includes(name));
  expect(functions.length).toBe(34);
  let threw = 0;
  for (let round = 0; round < 20_000; round++) {
    const [name, f] = functions[Math.floor(random() * functions.length)] as [string, (...list: unknown[]) => unknown];
    const list = Array.from({ length: Math.floor(random() * 11) }, () => values[Math.floor(random() * values.length)]);
    const error = tryCall(() => f(...list));
    if (error === undefined) continue;
    threw++;
    expect(error.message.startsWith(`${name}: `), error.message).toBe(true);
    expect(error.status).toBeGreaterThan(0);
  }
  expect(threw).toBeGreaterThan(10_000);
});

describe('threads', () => {
  /** A worker that loads the addon, opens a context with a buffer of `values`, and then evaluates what it is sent. */
  const SOURCE = `
    const { parentPort, workerData } = require('node:worker_threads');
    const addon = require(workerData.addon);
    addon.loadBackend('cpu', workerData.plugin);
    const context = addon.openContext('cpu', 0, 0);
    const buffer = addon.alloc(context, 4 * workerData.values.length, 0);
    addon.write(buffer, 0, Float32Array.from(workerData.values));
    parentPort.on('message', (code) => {
      if (code === 'end') process.exit(0);
      parentPort.postMessage(new Function('addon', 'context', 'buffer', code)(addon, context, buffer));
    });
    parentPort.postMessage({ context, buffer, thread: addon.threadId() });`;

  interface Started {
    context: number;
    buffer: number;
    thread: number;
    ask(code: string): Promise<unknown>;
    end(): Promise<unknown>;
    terminate(): Promise<unknown>;
  }

  async function start(values: number[]): Promise<Started> {
    const worker = new Worker(SOURCE, { eval: true, workerData: { addon: ADDON, plugin: PLUGIN, values } });
    const next = (event: string) =>
      new Promise<unknown>((resolve, reject) => worker.once(event, resolve).once('error', reject));
    const first = (await next('message')) as Pick<Started, 'context' | 'buffer' | 'thread'>;
    const after = (event: string, message: string) => {
      const answer = next(event);
      worker.postMessage(message);
      return answer;
    };
    return {
      ...first,
      ask: (code) => after('message', code),
      end: () => after('exit', 'end'),
      terminate: () => worker.terminate(),
    };
  }

  test('two workers copy between their buffers; what a thread opened is closed when it ends', async () => {
    const [one, two] = await Promise.all([start([1, 2, 3]), start([4, 5, 6])]);
    expect(new Set([one.thread, two.thread, addon.threadId()]).size).toBe(3);
    expect(new Set([one.buffer, two.buffer, one.context, two.context]).size).toBe(4);
    await one.ask(`addon.copy(${two.buffer}, 4, buffer, 0, 8)`);
    await two.ask(`addon.copy(${one.buffer}, 8, buffer, 0, 4)`);
    expect(readFloats(one.buffer, 3)).toEqual([1, 2, 4]);
    expect(readFloats(two.buffer, 3)).toEqual([4, 1, 2]);
    expect(addon.contextStats(two.context).currentBytes).toBe(12);
    await one.end();
    expect(tryCall(() => addon.bufferBytes(one.buffer))?.status).toBe(1);
    expect(tryCall(() => addon.contextStats(one.context))?.status).toBe(1);
    expect(await two.ask('const r = new Float32Array(3); addon.read(buffer, 0, r); return [...r]')).toEqual([4, 1, 2]);
    await two.terminate();
    expect(tryCall(() => addon.contextStats(two.context))?.status).toBe(1);
  });

  test('freeing and closing while another thread works on it is harmless', async () => {
    for (let round = 0; round < 5; round++) {
      const worker = await start(new Array<number>(4096).fill(1));
      await worker.ask(`
        const words = (offset) => [0, buffer, offset, 0, 0, 2, 32, 64, 0, 0, 64, 1, 0, 0];
        const code = [1, 1000, 0, ...words(0), ...new Array(1000).fill([${ADD}, 2, 1, 0, 0, 0, 0]).flat()];
        globalThis.program = addon.createProgram(context, Float64Array.from(code));`);
      const running = worker.ask(`
        let runs = 0;
        try {
          for (const end = Date.now() + 2000; Date.now() < end; runs++) {
            addon.runProgram(globalThis.program, new Int32Array(3), new Float64Array(0), 0, 1000);
          }
        } catch (error) {
          return { runs, message: error.message };
        }
        return { runs };`);
      await new Promise((resolve) => setTimeout(resolve, 20));
      addon.free(worker.buffer); // the program goes on holding it
      await new Promise((resolve) => setTimeout(resolve, 10));
      addon.closeContext(worker.context);
      expect(await running).toMatchObject({ message: expect.stringMatching(/live program/) });
      await worker.end();
    }
  });

  test('a process with open contexts, programs and files ends quietly', () => {
    const source = `
      const addon = require(${JSON.stringify(ADDON)});
      addon.loadBackend('cpu', ${JSON.stringify(PLUGIN)});
      const context = addon.openContext('cpu', 0, 0);
      addon.alloc(context, 1 << 20, 0);
      addon.openFile(process.execPath);
      addon.createProgram(context, Float64Array.of(0, 0, 0));
      const { Worker } = require('node:worker_threads');
      const inner = 'const a = require(' + ${JSON.stringify(JSON.stringify(ADDON))} + ');' +
        'a.alloc(a.openContext("cpu", 0, 0), 4096, 0); setInterval(() => {}, 1000);' +
        'require("node:worker_threads").parentPort.postMessage(1);';
      new Worker(inner, { eval: true }).once('message', () => process.exit(7));`;
    const { status, stderr, signal } = spawnSync(process.execPath, ['-e', source], { encoding: 'utf8' });
    expect({ status, stderr, signal }).toEqual({ status: 7, stderr: '', signal: null });
  });
});
