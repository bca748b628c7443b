/** PyTorch files that a test writes to a temporary folder and opens again, and the error of opening one. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CheckpointError, openCheckpointSync } from '@metashard/core';
import { afterAll, expect } from 'vitest';
import { type Py, pickle, rebuildTensor, storage, torchRecords, type ZipOptions, zip } from './torch-files.js';

export const fixtures = fileURLToPath(new URL('./fixtures/pytorch/', import.meta.url));
export const folder = mkdtempSync(join(tmpdir(), 'metashard-pytorch-'));
afterAll(() => rmSync(folder, { recursive: true }));
/** Where each test writes the file that it opens. */
export const path = join(folder, 'model.bin');

/** The error of opening a file: one line that names it. */
export function errorOf(file: string): CheckpointError {
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
export function writeTorch(data: Py | Buffer, options: ZipOptions = {}): string {
  const bytes = Buffer.isBuffer(data) ? data : pickle(data);
  writeFileSync(path, zip(torchRecords(bytes, { 0: Buffer.alloc(24, 1) }), options));
  return path;
}

export const floats = storage({ key: '0', type: 'FloatStorage', elements: 6 });
export const matrix = rebuildTensor(floats, 0, [2, 3], [3, 1]);
