/**
 * The native addon in several threads of one process: ids that all share, and what ends with the thread that opened it.
 */
import { spawnSync } from 'node:child_process';
import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import { ADD, ADDON, addon, PLUGIN, readFloats, tryCall } from './addon-calls.js';

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
