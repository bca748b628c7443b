/** Weights streamed from disk: the same tokens as in memory, by map and by spill, within the memory that was given; failures of the disk are typed errors. */
import { mkdtempSync, readdirSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  CheckpointError,
  InsufficientMemoryError,
  type LoadedModel,
  type LoadModelOptions,
  loadModel,
  planModel,
} from 'metashard';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { SHIPPED } from './golden-models.js';

const FOLDER = `${SHIPPED}bloom-stories`;
let offloadFolder = '';
beforeAll(() => {
  offloadFolder = mkdtempSync(join(tmpdir(), 'metashard-offload-'));
});
afterAll(() => rmSync(offloadFolder, { recursive: true }));

const BASE = (): LoadModelOptions => ({ loadIn8bit: true, maxSeqLen: 64, maxBatchSize: 4, offloadFolder });

async function tokens(model: LoadedModel, prompts: string[]): Promise<number[][]> {
  const rows: number[][] = prompts.map(() => []);
  for await (const piece of model.generate(prompts, { maxNewTokens: 20, ignoreEos: true }))
    rows[piece.row]?.push(...piece.tokenIds);
  return rows;
}

async function run<T>(options: LoadModelOptions, use: (model: LoadedModel) => Promise<T>): Promise<T> {
  const model = await loadModel(FOLDER, { ...BASE(), ...options });
  try {
    return await use(model);
  } finally {
    await model.dispose();
  }
}

const PROMPTS = ['Once upon a time', 'The big red ball', 'Lily'];
const resident = () => run({ devices: ['cpu'] }, (model) => tokens(model, PROMPTS));

describe('disk', () => {
  it('streams blocks that a map puts there, and gives the same tokens', async () => {
    const deviceMap = {
      '': 'cpu:0',
      'transformer.h.2': 'disk',
      'transformer.h.3': 'disk',
      'transformer.h.6': { device: 'disk', execute_on: 'cpu:1' },
    };
    await run({ devices: ['cpu:0', 'cpu:1', 'disk'], deviceMap }, async (model) => {
      expect(model.plan.offloaded.map((one) => one.module)).toEqual([
        'transformer.h.2',
        'transformer.h.3',
        'transformer.h.6',
      ]);
      expect(model.plan.segments.map((one) => `${one.device}→${one.executeOn}`)).toEqual([
        'cpu:0→cpu:0',
        'disk→cpu:0',
        'cpu:0→cpu:0',
        'disk→cpu:1',
        'cpu:0→cpu:0',
      ]);
      expect(await tokens(model, PROMPTS)).toEqual(await resident());
    });
  });

  it('spills to disk what does not fit, says so, stays within the budget, and gives the same tokens', async () => {
    const whole = (await planModel(FOLDER, { ...BASE(), devices: ['cpu'] })).devices[0];
    const needed = (whole?.budgetBytes ?? 0) - (whole?.freeBytes ?? 0);
    const maxMemory = { cpu: needed - 300_000 };
    await expect(planModel(FOLDER, { ...BASE(), devices: ['cpu'], maxMemory })).rejects.toThrow(
      InsufficientMemoryError,
    );
    await run({ devices: ['cpu', 'disk'], maxMemory }, async (model) => {
      expect(model.plan.offloaded.length).toBeGreaterThan(1);
      expect(model.plan.offloaded.length).toBeLessThan(9);
      const disk = model.plan.devices.find((one) => one.name === 'disk');
      expect(disk?.weightsBytes).toBeGreaterThan(0);
      expect(await tokens(model, PROMPTS)).toEqual(await resident());
      for (const { peakBytes, budgetBytes } of await model.stats()) expect(peakBytes).toBeLessThanOrEqual(budgetBytes);
    });
  });

  it('streams on the last device, and has a tied head return to its table instead of streaming it', async () => {
    const memory = (bytes: number) => ({ 'cpu:0': bytes, 'cpu:1': bytes });
    const options = (bytes: number) => ({ devices: ['cpu:0', 'cpu:1', 'disk'], maxMemory: memory(bytes) });
    let tight = 3 * 2 ** 20;
    while ((await planModel(FOLDER, { ...BASE(), ...options(tight) }).catch(() => undefined)) === undefined)
      tight += 2 ** 17;
    await run(options(tight), async (model) => {
      const { segments, deviceMap, offloaded, copies } = model.plan;
      expect(offloaded.length).toBeGreaterThan(1);
      expect(offloaded.map(({ module }) => module)).not.toContain('lm_head');
      expect([deviceMap.lm_head, deviceMap['transformer.word_embeddings'], copies]).toEqual(['cpu:0', 'cpu:0', []]);
      expect(segments.at(-1)).toMatchObject({ device: 'cpu:0', executeOn: 'cpu:0' });
      expect(await tokens(model, PROMPTS)).toEqual(await resident());
      for (const { peakBytes, budgetBytes } of await model.stats()) expect(peakBytes).toBeLessThanOrEqual(budgetBytes);
    });
  });

  it('refuses when even the window does not fit, and disk without a CPU', async () => {
    await expect(
      planModel(FOLDER, { ...BASE(), devices: ['cpu', 'disk'], maxMemory: { cpu: '1MiB' } }),
    ).rejects.toThrow(InsufficientMemoryError);
    const onlyGpu = {
      ...BASE(),
      devices: ['cuda:0', 'disk'],
      maxMemory: { 'cuda:0': '1GiB' },
      deviceMap: { '': 'disk' },
    };
    await expect(planModel(FOLDER, onlyGpu)).rejects.toMatchObject({ code: 'offload_unsupported' });
  });

  it('a store cut short in the middle of a run is a typed error; the process and a later load go on', async () => {
    const own = mkdtempSync(join(offloadFolder, 'cut-'));
    const options: LoadModelOptions = {
      ...BASE(),
      offloadFolder: own,
      devices: ['cpu', 'disk'],
      deviceMap: { '': 'disk' },
      maxMemory: { cpu: '8MiB' },
    };
    const model = await loadModel(FOLDER, options);
    expect(await tokens(model, ['Once'])).toHaveLength(1);
    const file = join(own, readdirSync(own)[0] as string);
    truncateSync(file, 100_000);
    await expect(tokens(model, ['Once'])).rejects.toThrow(CheckpointError);
    await model.dispose();
    rmSync(file);
    const again = await loadModel(FOLDER, options);
    expect(await tokens(again, PROMPTS)).toEqual(await resident());
    await again.dispose();
  });
});
