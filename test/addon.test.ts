/**
 * The native addon over the CPU backend: its contract, ids, ranges, budgets, and thousands of garbage calls. A wrong
 * argument must throw and never crash. Files, programs and threads are addon-files, addon-programs and
 * addon-threads.test.ts; what ops compute is the case table's matter.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { MEMORY_KINDS, OP_NAMES, opSignature } from '@metashard/core';
import { describe, expect, test } from 'vitest';
import {
  ADD,
  ADDON,
  addon,
  EMPTY,
  floatsIn,
  inBuffer,
  MIB,
  openContext,
  PLUGIN,
  randomNumbers,
  readFloats,
  temporaryFolder,
  tensors,
  tryCall,
} from './addon-calls.js';

const folder = temporaryFolder();

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
  expect(functions.length).toBe(35);
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
