/**
 * Files mapped as buffers: used in place, shared, never written, and a file that is cut short under a mapping is an
 * error, not the end of the process.
 */
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ADVICE, CheckpointError, DeviceContext, guardNative, MEMORY_KINDS, native, parseDevice } from 'metashard';
import { afterAll, beforeAll, expect, test } from 'vitest';

let folder = '';
let context: DeviceContext;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'metashard-map-'));
  context = new DeviceContext(parseDevice('cpu:3'));
});
afterAll(() => {
  context.close();
  rmSync(folder, { recursive: true });
});

const PAGE = 4096;
const WEIGHTS = MEMORY_KINDS.indexOf('weights');

function write(name: string, pages: number): string {
  const file = join(folder, name);
  writeFileSync(
    file,
    Uint8Array.from({ length: pages * PAGE }, (_, i) => Math.floor(i / PAGE) + 1),
  );
  return file;
}

function readByte(buffer: number, offset: number): number {
  const byte = new Uint8Array(1);
  guardNative('cpu:3', 'read', () => native().read(buffer, offset, byte));
  return byte[0] as number;
}

test('reads what the file holds, counts it as asked, and never writes back', () => {
  const path = write('plain', 4);
  const file = native().openFile(path);
  const counted = native().mapFile(context.id, file, PAGE, 2 * PAGE, WEIGHTS);
  expect(context.stats().current[WEIGHTS]).toBe(2 * PAGE);
  const uncounted = native().mapFile(context.id, file, 0, 4 * PAGE, -1);
  expect(context.stats().current[WEIGHTS]).toBe(2 * PAGE);
  native().closeFile(file);
  expect([readByte(counted, 0), readByte(counted, PAGE), readByte(uncounted, 3 * PAGE)]).toEqual([2, 3, 4]);
  for (const advice of Object.values(ADVICE)) native().advise(uncounted, 100, 3 * PAGE, advice);
  expect(readByte(uncounted, 2 * PAGE)).toBe(3);
  native().write(counted, 0, Uint8Array.of(99));
  expect(readFileSync(path)[PAGE]).toBe(2);
  native().free(counted);
  native().free(uncounted);
  expect(context.stats().current[WEIGHTS]).toBe(0);
});

test('a file that is cut short while it is mapped gives a typed error, and the process goes on', () => {
  const path = write('cut', 64);
  const file = native().openFile(path);
  const buffer = native().mapFile(context.id, file, 0, 64 * PAGE, -1);
  truncateSync(path, 8 * PAGE);
  native().advise(buffer, 0, 64 * PAGE, ADVICE.release);
  expect(readByte(buffer, 7 * PAGE)).toBe(8);
  expect(() => readByte(buffer, 40 * PAGE)).toThrow(CheckpointError);
  expect(() => readByte(buffer, 41 * PAGE)).toThrow(/cut: cannot be read at offset 167936: the file was cut short/);
  expect(readByte(buffer, 6 * PAGE)).toBe(7);
  native().free(buffer);
  native().closeFile(file);
});

test('refuses ranges outside of the file and offsets within a page', () => {
  const file = native().openFile(write('small', 2));
  expect(() => native().mapFile(context.id, file, 0, 3 * PAGE, -1)).toThrow(/expected a range within its 8192 bytes/);
  expect(() => native().mapFile(context.id, file, 100, PAGE, -1)).toThrow(/expected an offset that 4096 divides/);
  const plain = context.alloc(64);
  expect(() => native().advise(plain, 0, 64, ADVICE.willNeed)).toThrow(/buffer of mapFile/);
  native().closeFile(file);
});
