/**
 * Weights that a GPU computes with and does not hold: parked in host memory or packed on disk, streamed ahead of use into a window. The same bits as the resident
 * run, exactly the planned bytes, each block once a step whatever the batch, typed errors that name file and block. Over emulated GPUs whose copies come as late
 * as they may, so that a missing event is wrong data; the emulated driver is chosen before the backend loads, so this file has a process of its own.
 */
process.env.METASHARD_CUDA_EMULATED = '2x1GiB';
process.env.METASHARD_EMULATOR = 'lazy,seed=3';

import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { LoadedModel, LoadModelOptions } from 'metashard';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readGolden, rowsOf, SHIPPED } from './golden-models.js';

type Metashard = typeof import('metashard');
let metashard: Metashard;
let offloadFolder = '';
beforeAll(async () => {
  metashard = await import('metashard');
  offloadFolder = mkdtempSync(join(tmpdir(), 'metashard-cuda-offload-'));
});
afterAll(() => rmSync(offloadFolder, { recursive: true }));

const STORIES = `${SHIPPED}bloom-stories`;
const DEVICES = ['cuda:0', 'cuda:1', 'cpu:0', 'disk'];
const BASE = (): LoadModelOptions => ({
  devices: DEVICES,
  dtype: 'float32',
  loadIn8bit: true,
  maxSeqLen: 32,
  maxBatchSize: 3,
  offloadFolder,
});

async function run<T>(folder: string, options: LoadModelOptions, use: (model: LoadedModel) => Promise<T>): Promise<T> {
  const model = await metashard.loadModel(folder, { ...BASE(), ...options });
  try {
    return await use(model);
  } finally {
    await model.dispose();
  }
}

/** Greedy ids of three prompts, 6 new ones each. */
async function tokens(model: LoadedModel): Promise<number[][]> {
  const rows: number[][] = [[], [], []];
  const prompts = [[1, 403, 407], [5, 9], [1]];
  for await (const piece of model.generate(prompts, { maxNewTokens: 6, ignoreEos: true }))
    rows[piece.row]?.push(...piece.tokenIds);
  return rows;
}

const parked = { device: 'cpu', execute_on: 'cuda:0' };
const packed = { device: 'disk', execute_on: 'cuda:0' };

describe.each(['bloom', 'llama', 'mistral'] as const)('%s', (name) => {
  const golden = readGolden(name);
  const logitsOf = (options: LoadModelOptions): Promise<Float32Array> =>
    run(golden.folder, options, async (model) =>
      (await model.forward({ inputIds: rowsOf(golden, 'input_ids') })).logits.toFloat32Array(),
    );

  it.each([true, false])(
    "gives the resident run's bits from host memory and from disk, in 8 bits: %s",
    async (loadIn8bit) => {
      const want = await logitsOf({ loadIn8bit, deviceMap: { '': 'cuda:0' } });
      expect(await logitsOf({ loadIn8bit, deviceMap: { '': parked } })).toEqual(want);
      expect(await logitsOf({ loadIn8bit, deviceMap: { '': packed } })).toEqual(want);
    },
  );
});

describe('maps', () => {
  it('mixes resident, parked and packed blocks over two GPUs and the CPU; the plan says where weights lie', async () => {
    const deviceMap = {
      '': 'cuda:0',
      'transformer.h.1': parked,
      'transformer.h.2': packed,
      'transformer.h.3': { device: 'cpu', execute_on: 'cuda:1' },
      'transformer.h.4': 'cuda:1',
      'transformer.h.6': parked,
    } satisfies LoadModelOptions['deviceMap'];
    const want = await run(STORIES, { deviceMap: { '': 'cuda:0' } }, tokens);
    await run(STORIES, { deviceMap }, async (model) => {
      expect(model.plan.segments.map((one) => `${one.device}→${one.executeOn}`)).toEqual([
        'cuda:0→cuda:0',
        'cpu:0→cuda:0',
        'disk→cuda:0',
        'cpu:0→cuda:1',
        'cuda:1→cuda:1',
        'cuda:0→cuda:0',
        'cpu:0→cuda:0',
        'cuda:0→cuda:0',
      ]);
      expect(model.deviceMap['transformer.h.2']).toEqual({ device: 'disk', execute_on: 'cuda:0' });
      expect(model.plan.offloaded).toContainEqual({ module: 'transformer.h.3', device: 'cpu:0' });
      expect(await tokens(model)).toEqual(want);
      expect(await tokens(model)).toEqual(want);
      const again = await metashard.planModel(STORIES, { ...BASE(), deviceMap: model.deviceMap });
      expect(again.segments).toEqual(model.plan.segments);
    });
  });

  it('takes exactly the planned bytes on both devices, and refuses a budget a byte smaller', async () => {
    const deviceMap = { '': 'cuda:0', 'transformer.h': parked } satisfies LoadModelOptions['deviceMap'];
    const plan = await metashard.planModel(STORIES, { ...BASE(), deviceMap });
    const [gpu, host] = ['cuda:0', 'cpu:0'].map((name) => plan.devices.find((one) => one.name === name));
    const blocks = (plan.modules ?? []).filter(({ path }) => path.startsWith('transformer.h.'));
    const onHost = blocks.filter(({ device }) => device === 'cpu:0').reduce((sum, one) => sum + one.weightsBytes, 0);
    expect(host?.weightsBytes).toBe(onHost);
    const largest = Math.max(...blocks.map(({ weightsBytes }) => weightsBytes));
    expect(gpu?.windowBytes).toBe(3 * largest + 8 * 2 ** 20); // at work, two ahead; windows for loading
    const needed = { cuda: (gpu?.budgetBytes ?? 0) - (gpu?.freeBytes ?? 0), cpu: onHost };
    const maxMemory = { 'cuda:0': needed.cuda, cpu: needed.cpu };
    const want = await run(STORIES, { deviceMap: { '': 'cuda:0' } }, tokens);
    await run(STORIES, { deviceMap, maxMemory }, async (model) => {
      expect(await tokens(model)).toEqual(want);
      const stats = await model.stats();
      expect(stats.find((one) => one.device === 'cpu:0')).toMatchObject({ peakBytes: onHost, plannedBytes: onHost });
      const used = stats.find((one) => one.device === 'cuda:0');
      expect(used?.peak[metashard.MEMORY_KINDS.indexOf('weights')]).toBe(gpu?.weightsBytes);
      expect(used?.peak[metashard.MEMORY_KINDS.indexOf('other')]).toBe(3 * largest);
      expect(used?.peakBytes).toBeLessThanOrEqual(used?.plannedBytes ?? 0);
    });
    await expect(
      metashard.planModel(STORIES, { ...BASE(), deviceMap, maxMemory: { ...maxMemory, cpu: onHost - 1 } }),
    ).rejects.toMatchObject({ code: 'memory_insufficient', details: { device: 'cpu:0' } });
  });

  it('reads a block once a step, whatever the batch', async () => {
    const bytesRead = (): number => Number(/^rchar: (\d+)$/m.exec(readFileSync('/proc/self/io', 'utf8'))?.[1]);
    await run(STORIES, { deviceMap: { '': 'cuda:0', 'transformer.h': packed } }, async (model) => {
      const onDisk = model.plan.devices.find((one) => one.name === 'disk')?.weightsBytes ?? 0;
      const roundsOf = async (prompts: number[][]): Promise<number> => {
        const before = bytesRead();
        for await (const piece of model.generate(prompts, { maxNewTokens: 6, ignoreEos: true })) void piece;
        return (bytesRead() - before) / onDisk;
      };
      await roundsOf([[1]]); // from here on what is read ahead for a next run and for this one balance
      for (const prompts of [[[1]], [[1, 403, 407], [5, 9], [1]]]) {
        const rounds = await roundsOf(prompts);
        expect(rounds).toBeGreaterThan(5.5);
        expect(rounds).toBeLessThan(6.5);
      }
    });
  });

  it('saves what it streams', async () => {
    const [from, to] = [mkdtempSync(join(offloadFolder, 'save-')), mkdtempSync(join(offloadFolder, 'save-'))];
    await run(STORIES, { deviceMap: { '': 'cuda:0' } }, (model) => model.saveCheckpoint(from));
    const deviceMap = { '': 'cuda:0', 'transformer.h.1': parked, 'transformer.h.2': packed } as const;
    await run(STORIES, { deviceMap }, (model) => model.saveCheckpoint(to));
    expect(readFileSync(join(to, 'model.safetensors')).equals(readFileSync(join(from, 'model.safetensors')))).toBe(
      true,
    );
  });

  it('a dispatched module parks its weights', async () => {
    const { nn, randn, dispatchModel } = metashard;
    const module = new nn.Sequential([new nn.Linear(64, 32), new nn.Linear(32, 64), new nn.Linear(64, 16)]);
    const x = randn([5, 64], { seed: 4 });
    const outputs = [];
    for (const deviceMap of [{ '': 'cuda:0' }, { '': 'cuda:0', 1: parked, 2: parked }] as const) {
      const inputs = { x: { shape: ['tokens', 64] as const, dtype: 'float32' as const } };
      const dispatched = await dispatchModel(module, { devices: ['cuda:0', 'cpu'], deviceMap, inputs, maxSeqLen: 8 });
      outputs.push((await dispatched.forward({ x })).toFloat32Array());
      await dispatched.dispose();
    }
    expect(outputs[1]).toEqual(outputs[0]);
  });

  it('refuses to compute on one CPU what another holds, and to hold on a GPU what another device computes', async () => {
    for (const one of [
      { device: 'cuda:0', execute_on: 'cpu' },
      { device: 'cuda:0', execute_on: 'cuda:1' },
    ])
      await expect(metashard.planModel(STORIES, { ...BASE(), deviceMap: { '': one } })).rejects.toMatchObject({
        code: 'offload_unsupported',
      });
  });
});

describe('failures', () => {
  it('a store cut short in mid-run is an error that names file and block; whole again, the same model goes on', async () => {
    const own = mkdtempSync(join(offloadFolder, 'cut-'));
    await run(STORIES, { offloadFolder: own, deviceMap: { '': packed } }, async (model) => {
      const want = await tokens(model);
      const file = join(own, readdirSync(own)[0] as string);
      const whole = readFileSync(file);
      truncateSync(file, Math.floor(whole.length / 2));
      const error = await tokens(model).catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(metashard.CheckpointError);
      expect(error).toMatchObject({
        code: 'file_unreadable',
        message: expect.stringContaining(file),
        details: { block: expect.stringMatching(/^transformer\.h\.\d$/) },
      });
      writeFileSync(file, whole);
      expect(await tokens(model)).toEqual(want);
    });
  });
});
