/**
 * Errors keep class, code, hint, details and cause across structured clone, a worker and a second copy of the package.
 */
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import * as core from '@metashard/core';
import {
  CheckpointError,
  ExecutorError,
  fromPlainError,
  MetashardError,
  nearestWord,
  type PlainError,
  toPlainError,
} from '@metashard/core';
import { describe, expect, it } from 'vitest';

type ErrorClass = new (message: string, details?: core.ErrorDetails & { code?: string }) => MetashardError;

const CLASSES: Record<string, string> = {
  ConfigError: 'config_invalid',
  UnsupportedConfigError: 'config_unsupported',
  CheckpointError: 'checkpoint_invalid',
  ModelNotFoundError: 'model_not_found',
  DeviceMapError: 'device_map_invalid',
  InsufficientMemoryError: 'memory_insufficient',
  OutOfMemoryError: 'memory_exhausted',
  ShapeError: 'shape_mismatch',
  DtypeError: 'dtype_mismatch',
  NotCompiledError: 'not_compiled',
  DeviceUnavailableError: 'device_unavailable',
  DeviceLostError: 'device_lost',
  BackendError: 'backend_failed',
  ExecutorError: 'executor_failed',
  ContextLengthError: 'context_too_long',
  ArgumentError: 'argument_invalid',
  DisposedError: 'disposed',
  StateError: 'state_invalid',
};

describe('error classes', () => {
  it('are the ones listed, and no other', () => {
    const exported = Object.entries(core).filter(
      ([, value]) => value instanceof Function && value.prototype instanceof MetashardError,
    );
    expect(exported.map(([name]) => name).sort()).toEqual(Object.keys(CLASSES).sort());
  });

  it.each(Object.entries(CLASSES))('%s survives structured clone with class and code %s', (name, code) => {
    const Class = (core as unknown as Record<string, ErrorClass>)[name] as ErrorClass;
    const cause = new RangeError('below');
    const error = new Class('here: expected 1, got 2', { hint: 'do this', cause, details: { file: 'a', at: [1, 2] } });
    expect([error.name, error.code, MetashardError.isInstance(error)]).toEqual([name, code, true]);
    const back = fromPlainError(structuredClone(toPlainError(error))) as MetashardError;
    expect(back).toBeInstanceOf(Class);
    expect([back.name, back.code, back.hint, back.message]).toEqual([name, code, 'do this', 'here: expected 1, got 2']);
    expect(back.details).toEqual({ file: 'a', at: [1, 2] });
    expect(back.cause).toMatchObject({ name: 'RangeError', message: 'below' });
    expect(back.stack).toBe(error.stack);
  });

  it('keeps a code of its own, foreign errors, and things that are no errors', () => {
    const error = new CheckpointError('x', { code: 'checkpoint_missing' });
    expect((fromPlainError(toPlainError(error)) as MetashardError).code).toBe('checkpoint_missing');
    const foreign = fromPlainError(toPlainError(new TypeError('no')));
    expect([foreign.name, MetashardError.isInstance(foreign)]).toEqual(['TypeError', false]);
    expect(toPlainError('text')).toEqual({ name: 'Error', message: 'text' });
    for (const value of [null, undefined, 1, 'x', {}, new Error('x')])
      expect(MetashardError.isInstance(value)).toBe(false);
  });

  it('come back typed from a worker thread', async () => {
    const url = pathToFileURL(createRequire(import.meta.url).resolve('@metashard/core')).href;
    const code = `import(${JSON.stringify(url)}).then(({ CheckpointError, ExecutorError, toPlainError }) => {
      const cause = new CheckpointError('a.safetensors: tensor "w": expected 8 bytes, got 4', { details: { file: 'a.safetensors', tensor: 'w' } });
      const error = new ExecutorError('cpu:1: loading failed', { cause, details: { device: 'cpu:1' }, hint: 'look there' });
      require('node:worker_threads').parentPort.postMessage(toPlainError(error));
    });`;
    const worker = new Worker(code, { eval: true });
    const plain = await new Promise<PlainError>((resolve, reject) =>
      worker.once('message', resolve).once('error', reject),
    );
    await worker.terminate();
    const error = fromPlainError(plain) as MetashardError;
    expect(error).toBeInstanceOf(ExecutorError);
    expect([error.code, error.hint, error.details.device]).toEqual(['executor_failed', 'look there', 'cpu:1']);
    expect(error.cause).toBeInstanceOf(CheckpointError);
    expect((error.cause as MetashardError).details).toEqual({ file: 'a.safetensors', tensor: 'w' });
  });

  it('are known across copies of the package by their brand', () => {
    class Copy extends Error {}
    const copy = Object.defineProperty(new Copy('x'), Symbol.for('metashard.error'), { value: true });
    expect(MetashardError.isInstance(copy)).toBe(true);
    expect(copy instanceof MetashardError).toBe(false);
  });
});

describe('did you mean', () => {
  const words = ['max_memory', 'device_map', 'load_in_8bit', 'model', 'threads'];
  it.each([
    ['max_memroy', 'max_memory'],
    ['devicemap', 'device_map'],
    ['Model', 'model'],
    ['load_in_8bits', 'load_in_8bit'],
    ['thread', 'threads'],
    ['temperature', undefined],
    ['x', undefined],
    ['', undefined],
  ])('%s → %s', (word, nearest) => {
    expect(nearestWord(word, words)).toBe(nearest);
  });
});
