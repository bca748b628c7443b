/** Weights streamed from disk: the same tokens as in memory, by map and by spill, within the memory that was given; failures of the disk are typed errors. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  CheckpointError,
  InsufficientMemoryError,
  type LoadedModel,
  type LoadModelOptions,
  loadModel,
  native,
  OPS,
  planModel,
} from 'metashard';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { SHIPPED } from './golden-models.js';

const BENCH = fileURLToPath(new URL('../bench/', import.meta.url));

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

  it('runs a streamed block once a step for all sequences', async () => {
    const calls = (): number => native().opCalls(OPS.int8_linear.code);
    await run({ devices: ['cpu', 'disk'], deviceMap: { '': 'disk' } }, async (model) => {
      const counts: number[] = [];
      for (const prompts of [PROMPTS.slice(0, 1), PROMPTS]) {
        const before = calls();
        await tokens(model, prompts);
        counts.push(calls() - before);
      }
      expect(counts[0]).toBeGreaterThan(0);
      expect(counts[1]).toBe(counts[0]);
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

  it('a store cut short in the middle of a run is a typed error that names file and block; once whole, the same model goes on', async () => {
    const own = mkdtempSync(join(offloadFolder, 'cut-'));
    const options: LoadModelOptions = {
      ...BASE(),
      offloadFolder: own,
      devices: ['cpu', 'disk'],
      deviceMap: { '': 'disk' },
      maxMemory: { cpu: '8MiB' },
    };
    const model = await loadModel(FOLDER, options);
    const want = await tokens(model, PROMPTS);
    const file = join(own, readdirSync(own)[0] as string);
    const whole = readFileSync(file);
    truncateSync(file, Math.floor(whole.length / 2));
    const error = await tokens(model, ['Once']).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(CheckpointError);
    expect(error).toMatchObject({
      code: 'file_unreadable',
      message: expect.stringContaining(file),
      details: { block: expect.stringMatching(/^transformer\.h\.\d$/) },
    });
    // A new load sees that the store is broken; nothing else of the process is.
    await expect(loadModel(FOLDER, options)).rejects.toThrow(/cut short/);
    expect(want).toEqual(await resident());
    writeFileSync(file, whole);
    expect(await tokens(model, PROMPTS)).toEqual(want);
    await model.dispose();
  });

  it('a store deleted in the middle of a run is read to the end of the model, and packed again by the next load', async () => {
    const own = mkdtempSync(join(offloadFolder, 'gone-'));
    const options = {
      offloadFolder: own,
      devices: ['cpu', 'disk'],
      deviceMap: { '': 'disk' },
      maxMemory: { cpu: '8MiB' },
    };
    await run(options, async (model) => {
      const want = await tokens(model, PROMPTS);
      rmSync(join(own, readdirSync(own)[0] as string));
      expect(await tokens(model, PROMPTS)).toEqual(want);
      expect(readdirSync(own)).toEqual([]);
      await run(options, async (again) => expect(await tokens(again, PROMPTS)).toEqual(want));
      expect(readdirSync(own)).toHaveLength(1);
    });
  });

  it('a disk that is full while the store is written is a typed error that leaves nothing behind; the process goes on', async () => {
    const own = mkdtempSync(join(offloadFolder, 'full-'));
    const options = { ...BASE(), offloadFolder: own, devices: ['cpu', 'disk'], deviceMap: { '': 'disk' } };
    const script = `
      const { loadModel } = await import(${JSON.stringify(import.meta.resolve('metashard'))});
      const options = ${JSON.stringify(options)};
      const failed = await loadModel(${JSON.stringify(FOLDER)}, options).catch((error) => error);
      const model = await loadModel(${JSON.stringify(FOLDER)}, { ...options, devices: ['cpu'], deviceMap: 'auto' });
      const ids = [];
      for await (const piece of model.generate('Once upon a time', { maxNewTokens: 20, ignoreEos: true })) ids.push(...piece.tokenIds);
      await model.dispose();
      const { name, code, message, details } = failed;
      console.log(JSON.stringify({ name, code, message, details, ids }));`;
    // No file of this process may grow beyond 1 MB; the store takes 3.
    const limited = ['-c', 'ulimit -f 1953; exec "$@"', 'sh', process.execPath, '--input-type=module', '-e', script];
    const { stdout, stderr } = spawnSync('sh', limited, { encoding: 'utf8' });
    expect(stdout, stderr).not.toBe('');
    const { ids, ...error } = JSON.parse(stdout);
    expect(error).toMatchObject({ code: 'store_unwritable', message: expect.stringContaining(own) });
    expect(error.details.tensor).toMatch(/^transformer\./);
    expect(readdirSync(own)).toEqual([]);
    const alone = await run({ devices: ['cpu'] }, (model) => tokens(model, ['Once upon a time']));
    expect([ids]).toEqual(alone);
    await run({ ...options }, async (model) => expect(await tokens(model, PROMPTS)).toEqual(await resident()));
  });
});

describe('a memory group that counts the page cache', () => {
  /** Blocks of 17 MB in 8 bits, 22 of them. */
  const CONFIG = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: 2000,
    hidden_size: 1024,
    num_hidden_layers: 22,
    num_attention_heads: 16,
    intermediate_size: 4096,
    max_position_embeddings: 256,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: false,
  };
  const LIMIT_MB = 230;

  it('half as large again as the limit, a model gives the same tokens', (context) => {
    const own = mkdtempSync(join(offloadFolder, 'group-'));
    const [config, model] = [join(own, 'config.json'), join(own, 'model')];
    writeFileSync(config, JSON.stringify(CONFIG));
    const node = (...command: string[]): string => {
      const { stdout, stderr, status } = spawnSync(process.execPath, command, { encoding: 'utf8' });
      expect(status, stderr).toBe(0);
      return stdout;
    };
    node(join(BENCH, 'make-model.mjs'), config, model);
    const limits = ['--limits', `${LIMIT_MB}MB`, '--process', '140MB'];
    const sizes = ['--parts', 'groups', '--tokens', '5', '--rounds', '1', '--folder', own];
    const row = node(join(BENCH, 'offload.mjs'), model, ...limits, ...sizes)
      .split('\n')
      .find((line) => line.includes('memory group of')) as string;
    const [store] = readdirSync(join(own, 'stores'));
    expect(statSync(join(own, 'stores', store as string)).size).toBeGreaterThanOrEqual(1.5 * LIMIT_MB * 1e6);
    if (row.includes('no memory group')) context.skip(row.split('|')[2]?.trim());
    const [, , , , , gigabytesRead, , , same] = row.split('|').map((cell) => cell.trim());
    expect(same).toBe('yes');
    expect(Number(gigabytesRead)).toBeGreaterThan(0.1);
  }, 120_000);
});
