/**
 * Whole models over four emulated GPUs: the plugin's real binary and kernels, run by this machine's processor. Goldens in float and int8, mixed maps, a device visited
 * twice, a tied head, budgets. The emulated driver is chosen by the environment before the backend loads, so this file has a process of its own.
 */
process.env.METASHARD_CUDA_EMULATED = '4x1GiB';

import { readFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { distance, floats, MODELS, readGolden, relativeError, rowsOf, SHIPPED } from './golden-models.js';

type Metashard = typeof import('metashard');
let metashard: Metashard;
beforeAll(async () => {
  metashard = await import('metashard');
});

const GPUS = ['cuda:0', 'cuda:1', 'cuda:2', 'cuda:3'];
const SIZES = { dtype: 'float32', maxSeqLen: 64, maxBatchSize: 2 } as const;

describe.each(['bloom', 'llama', 'mistral'] as const)('%s', (name) => {
  const golden = readGolden(name);
  const ids = rowsOf(golden, 'input_ids');
  const logitsOf = async (options: Parameters<Metashard['loadModel']>[1]): Promise<Float32Array> => {
    const model = await metashard.loadModel(golden.folder, { ...SIZES, ...options });
    const got = (await model.forward({ inputIds: ids })).logits.toFloat32Array();
    await model.dispose();
    return got;
  };

  it('float32 over four GPUs agrees with transformers, and continues greedily as it does', async () => {
    const model = await metashard.loadModel(golden.folder, { ...SIZES, devices: GPUS, deviceMap: 'balanced' });
    expect(
      distance((await model.forward({ inputIds: ids })).logits.toFloat32Array(), floats(golden, 'logits')),
    ).toBeLessThan(1e-4);
    const tokens: number[] = [];
    for await (const piece of model.generate([ids[0] as number[]], { maxNewTokens: 8, ignoreEos: true }))
      tokens.push(...piece.tokenIds);
    expect(tokens).toEqual(golden.greedy.slice(0, 8));
    const threads = (await model.stats()).map((one) => one.threadId);
    expect(new Set([...threads, metashard.native().threadId()]).size).toBe(threads.length + 1);
    expect(model.plan.devices.every((device) => device.emulated)).toBe(true);
    await model.dispose();
  });

  it('int8 agrees with the published method, also over GPUs and the CPU mixed', async () => {
    const want = floats(golden, 'int8_logits');
    expect(
      relativeError(await logitsOf({ devices: GPUS, deviceMap: 'balanced', loadIn8bit: true }), want),
    ).toBeLessThan(4e-3);
    expect(
      relativeError(
        await logitsOf({ devices: ['cuda:0', 'cpu:0', 'cuda:1'], deviceMap: 'balanced', loadIn8bit: true }),
        want,
      ),
    ).toBeLessThan(4e-3);
  });
});

describe('maps', () => {
  it('a device visited twice and a tied head that returns to the first', async () => {
    const golden = readGolden('bloom');
    const deviceMap = { '': 'cuda:0', 'transformer.h.1': 'cuda:1', 'transformer.h.2': 'cpu:0' };
    const model = await metashard.loadModel(golden.folder, {
      ...SIZES,
      devices: ['cuda:0', 'cuda:1', 'cpu:0'],
      deviceMap,
    });
    expect(model.plan.segments.map((one) => one.device)).toEqual(['cuda:0', 'cuda:1', 'cpu:0', 'cuda:0']);
    const got = (await model.forward({ inputIds: rowsOf(golden, 'input_ids') })).logits.toFloat32Array();
    expect(distance(got, floats(golden, 'logits'))).toBeLessThan(1e-4);
    await model.dispose();
  });

  it.each([
    ['bloom-stories', `${SHIPPED}bloom-stories`],
    ['stories260K', `${SHIPPED}stories260K`],
    ['babyllama105', `${MODELS}babyllama105`],
  ])('%s tells its stories as transformers does', async (name, folder) => {
    const texts = JSON.parse(readFileSync(new URL('./fixtures/texts.json', import.meta.url), 'utf8')).models[name];
    const model = await metashard.loadModel(folder, {
      devices: GPUS,
      deviceMap: 'balanced',
      maxSeqLen: 64,
      dtype: 'float32',
    });
    for (const { prompt_ids, new_ids } of texts.slice(0, 2) as { prompt_ids: number[]; new_ids: number[] }[]) {
      const tokens: number[] = [];
      for await (const piece of model.generate(prompt_ids, { maxNewTokens: 20, ignoreEos: true }))
        tokens.push(...piece.tokenIds);
      expect(tokens).toEqual(new_ids.slice(0, 20));
    }
    await model.dispose();
  });

  it('two GPUs with several sequences in flight never wait for the main thread', async () => {
    const model = await metashard.loadModel(`${SHIPPED}stories260K`, {
      devices: ['cuda:0', 'cuda:1'],
      deviceMap: 'balanced',
      maxSeqLen: 32,
      maxBatchSize: 3,
    });
    const pieces = model
      .generate([[1, 403], [1, 407, 261], [1]], { maxNewTokens: 12, ignoreEos: true })
      [Symbol.asyncIterator]();
    await pieces.next();
    // The main thread does nothing but burn time; the tokens that came meanwhile are there at once.
    for (const start = Date.now(); Date.now() - start < 3000; );
    const before = metashard.native().opCalls(metashard.OPS.attention.code);
    let count = 1;
    for (let next = await pieces.next(); next.done !== true; next = await pieces.next()) count++;
    expect(count).toBe(36);
    expect(metashard.native().opCalls(metashard.OPS.attention.code) - before).toBeLessThan(5 * 11);
    await model.dispose();
  });

  it('loads a checkpoint saved in 8 bits', async () => {
    const folder = `${MODELS}stories260K-bnb8`;
    const expected = JSON.parse(readFileSync(`${folder}/expected.json`, 'utf8')).prompts[0];
    const model = await metashard.loadModel(folder, {
      devices: ['cuda:0', 'cuda:1'],
      deviceMap: 'balanced',
      maxSeqLen: 32,
    });
    const logits = (await model.forward({ inputIds: [expected.ids] })).logits
      .toFloat32Array()
      .slice(-model.config.vocabSize);
    expect(logits.indexOf(Math.max(...logits))).toBe(expected.float32.argmax);
    await model.dispose();
  });

  it('a budget too small for the map is refused before loading, naming device, need and offer', async () => {
    const load = metashard.loadModel(`${SHIPPED}bloom-stories`, {
      devices: GPUS,
      deviceMap: { '': 'cuda:2' },
      maxMemory: { 'cuda:2': '2MiB' },
    });
    const error = (await load.catch((thrown: unknown) => thrown)) as { code: string; details: Record<string, unknown> };
    expect(error.code).toBe('memory_insufficient');
    expect(error.details).toMatchObject({ device: 'cuda:2', availableBytes: 2 * 2 ** 20 });
  });

  it.each(['bloom', 'llama'])('takes the stored int8 steps of %s as the CPU does', async (model) => {
    const { expectNativeSteps } = await import('./native-int8-steps.js');
    expect(await expectNativeSteps(model, 'cuda:0')).toBeGreaterThan(3);
  });

  it('quantizes once on a GPU, and a layer computes there', async () => {
    const { Linear8bitLt, randn } = metashard;
    const layer = new Linear8bitLt(64, 48, { hasFp16Weights: false, threshold: 6 });
    const x = randn([5, 64], { seed: 1 });
    layer.to('cuda:1').to('cuda:1');
    expect(layer.weight.quantizeCalls).toBe(1);
    const onGpu = layer.forward(x.to('cuda:1'));
    expect(onGpu.device).toBe('cuda:1');
    const onCpu = layer.to('cpu').forward(x);
    expect(relativeError(onGpu.to('cpu').toFloat32Array(), onCpu.toFloat32Array())).toBeLessThan(1e-5);
    expect(layer.weight.quantizeCalls).toBe(1);
  });
});
