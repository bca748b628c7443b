/** How devices work together: threads, batches, block tables, memory, failures, aborts. On the shipped story model. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import {
  ContextLengthError,
  DeviceMapError,
  type GeneratedPiece,
  InsufficientMemoryError,
  type LoadedModel,
  type LoadModelOptions,
  loadModel,
  MetashardError,
  native,
  OPS,
  OutOfMemoryError,
} from 'metashard';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { SHIPPED } from './golden-models.js';

const FOLDER = `${SHIPPED}bloom-stories`;
const OPTIONS: LoadModelOptions = {
  devices: ['cpu:0', 'cpu:1'],
  deviceMap: 'balanced',
  loadIn8bit: true,
  maxSeqLen: 128,
  maxBatchSize: 8,
};

async function collect(
  pieces: AsyncIterable<GeneratedPiece>,
): Promise<{ ids: number[][]; text: string[]; last: GeneratedPiece[] }> {
  const result = { ids: [] as number[][], text: [] as string[], last: [] as GeneratedPiece[] };
  for await (const piece of pieces) {
    result.ids[piece.row] = [...(result.ids[piece.row] ?? []), ...piece.tokenIds];
    result.text[piece.row] = (result.text[piece.row] ?? '') + piece.text;
    if (piece.finishReason !== undefined) result.last[piece.row] = piece;
  }
  return result;
}

const linearCalls = (): number => native().opCalls(OPS.int8_linear.code);

describe('a model over two CPU devices', () => {
  let model: LoadedModel;
  beforeAll(async () => {
    model = await loadModel(FOLDER, OPTIONS);
  });
  afterAll(() => model.dispose());

  it('runs each device on a thread of its own, none of them the main one', async () => {
    const threads = (await model.stats()).map((one) => one.threadId);
    expect(new Set([...threads, native().threadId()]).size).toBe(3);
  });

  it('takes exactly what the plan promised, by kind', async () => {
    await collect(
      model.generate(['Once upon a time', 'A dog'], {
        maxNewTokens: 20,
        doSample: true,
        seed: 1,
        repetitionPenalty: 1.2,
      }),
    );
    const prompt = Array.from({ length: 127 }, (_, i) => 3 + (i % 400));
    await model.forward({ inputIds: Array.from({ length: 8 }, () => prompt) }, { outputHiddenStates: true });
    for (const { device, peakBytes, plannedBytes, peak } of await model.stats()) {
      const planned = model.plan.devices.find((one) => one.name === device);
      expect(peakBytes, device).toBeLessThanOrEqual(plannedBytes);
      expect(peakBytes, device).toBeGreaterThan(0.95 * plannedBytes);
      expect(peak[0]).toBe(planned?.weightsBytes);
      expect(peak[1]).toBe(planned?.kvCacheBytes);
      expect(peak[2]).toBeLessThanOrEqual(planned?.activationsBytes ?? 0);
    }
  });

  it('calls each linear once for a step of eight sequences', async () => {
    const prompts = Array.from({ length: 8 }, (_, i) => [1, 403 + i, 407]);
    const before = linearCalls();
    await collect(model.generate(prompts, { maxNewTokens: 5, ignoreEos: true }));
    expect(linearCalls() - before).toBe(5 * 4 * model.config.numLayers);
  });

  it('gives each row of a batch what it gives alone (in float)', async () => {
    const float = await loadModel(FOLDER, { ...OPTIONS, loadIn8bit: false });
    const prompts = ['Once upon a time', 'Lily', 'The big red ball was'];
    const together = await collect(float.generate(prompts, { maxNewTokens: 24, ignoreEos: true }));
    for (const [row, prompt] of prompts.entries()) {
      const alone = await collect(float.generate(prompt, { maxNewTokens: 24, ignoreEos: true }));
      expect(together.ids[row]).toEqual(alone.ids[0]);
      expect(together.text[row]).toBe(alone.text[0]);
    }
    await float.dispose();
  });

  it('does not depend on which cache blocks a sequence gets', async () => {
    const inputIds = [Array.from({ length: 70 }, (_, i) => 3 + i), Array.from({ length: 70 }, (_, i) => 200 + i)];
    const want = (await model.forward({ inputIds })).logits.toFloat32Array();
    const pieces: Float32Array[] = [];
    for await (const piece of model.generate(inputIds[0] as number[], { maxNewTokens: 8, outputLogits: true }))
      pieces.push(piece.logits as Float32Array);
    for (const seed of [1, 2, 3]) {
      model.blocks.shuffle(seed);
      expect((await model.forward({ inputIds })).logits.toFloat32Array()).toEqual(want);
      let step = 0;
      for await (const piece of model.generate(inputIds[0] as number[], { maxNewTokens: 8, outputLogits: true }))
        expect(piece.logits).toEqual(pieces[step++]);
    }
  });

  it('leaves the main thread free while generating', async () => {
    await collect(model.generate('Once', { maxNewTokens: 10 }));
    const delay = monitorEventLoopDelay({ resolution: 1 });
    delay.enable();
    await collect(model.generate('Once upon a time', { maxNewTokens: 100, ignoreEos: true }));
    delay.disable();
    expect(delay.percentile(99) / 1e6).toBeLessThan(20);
  });

  it('samples the same text for the same seed, another for another', async () => {
    const tell = async (seed: number): Promise<string> =>
      (
        await collect(
          model.generate('Once upon a time', {
            doSample: true,
            temperature: 1,
            topK: 50,
            topP: 0.95,
            seed,
            maxNewTokens: 40,
            ignoreEos: true,
          }),
        )
      ).text[0] as string;
    expect(await tell(7)).toBe(await tell(7));
    expect(await tell(7)).not.toBe(await tell(8));
  });

  it('stops at a stop string, wherever tokens are cut, and says so', async () => {
    const whole = (await collect(model.generate('Once upon a time', { maxNewTokens: 60, ignoreEos: true })))
      .text[0] as string;
    const stop = whole.slice(37, 45);
    const { text, last } = await collect(
      model.generate('Once upon a time', { maxNewTokens: 60, ignoreEos: true, stop: ['no such text', stop] }),
    );
    expect(text[0]).toBe(whole.slice(0, whole.indexOf(stop)));
    expect(last[0]?.finishReason).toBe('stop');
  });

  it('says how a row ended and what it took', async () => {
    const { last, ids } = await collect(model.generate([1, 403, 407], { maxNewTokens: 7, ignoreEos: true }));
    expect(ids[0]).toHaveLength(7);
    expect(last[0]).toMatchObject({ finishReason: 'length', usage: { promptTokens: 3, completionTokens: 7 } });
  });

  it('refuses what does not fit the context or the batch before any compute', async () => {
    const before = linearCalls();
    const long = Array.from({ length: 129 }, () => 5);
    await expect(collect(model.generate(long))).rejects.toThrow(ContextLengthError);
    await expect(collect(model.generate([1, 2], { maxNewTokens: 127 }))).rejects.toThrow(ContextLengthError);
    await expect(model.forward({ inputIds: [long] })).rejects.toThrow(ContextLengthError);
    await expect(collect(model.generate(Array.from({ length: 9 }, () => [1])))).rejects.toThrow(
      /at most maxBatchSize 8/,
    );
    await expect(collect(model.generate([512]))).rejects.toThrow(/token ids from 0 to 511/);
    await expect(collect(model.generate([1], { temperature: -1 }))).rejects.toThrow(/temperature/);
    expect(linearCalls()).toBe(before);
  });

  it('ends on an abort, in the middle and before, and stays usable', async () => {
    const controller = new AbortController();
    let tokens = 0;
    let reason: string | undefined;
    for await (const piece of model.generate('Once', {
      maxNewTokens: 120,
      ignoreEos: true,
      signal: controller.signal,
    })) {
      tokens += piece.tokenIds.length;
      reason = piece.finishReason;
      if (tokens === 5) controller.abort();
    }
    expect(reason).toBe('abort');
    expect(tokens).toBeLessThan(120);
    const { last } = await collect(model.generate('Once', { maxNewTokens: 9, signal: AbortSignal.abort() }));
    expect(last[0]?.finishReason).toBe('abort');
    expect((await collect(model.generate('Once', { maxNewTokens: 3, ignoreEos: true }))).ids[0]).toHaveLength(3);
  });

  it('frees the cache when a caller leaves the loop early, and runs waiting calls one after another', async () => {
    const free = model.blocks.freeBlocks;
    const first = (async () => {
      for await (const piece of model.generate('Once', { maxNewTokens: 100, ignoreEos: true }))
        if (piece.tokenIds.length > 0) break;
    })();
    const others = Promise.all(
      ['A cat', 'A dog'].map((prompt) => collect(model.generate(prompt, { maxNewTokens: 5, ignoreEos: true }))),
    );
    await first;
    for (const { ids } of await others) expect(ids[0]).toHaveLength(5);
    expect(model.blocks.freeBlocks).toBe(free);
  });

  it('refuses work after dispose', async () => {
    const other = await loadModel(FOLDER, { ...OPTIONS, maxBatchSize: 1 });
    await other.dispose();
    await other.dispose();
    await expect(other.forward({ inputIds: [[1]] })).rejects.toMatchObject({ code: 'disposed' });
  });
});

describe('failures', () => {
  it('refuses a plan that does not fit before reading weights, naming device, need and offer', async () => {
    const error = await loadModel(FOLDER, { ...OPTIONS, maxMemory: { 'cpu:0': '2MiB', 'cpu:1': '2MiB' } }).catch(
      (thrown: unknown) => thrown,
    );
    expect(error).toBeInstanceOf(InsufficientMemoryError);
    expect((error as InsufficientMemoryError).details).toMatchObject({
      device: expect.stringMatching(/^cpu:[01]$/),
      availableBytes: 2 * 2 ** 20,
    });
  });

  it('refuses a map that names no module, leaves some out, or asks for what cannot be streamed', async () => {
    const load = (deviceMap: NonNullable<LoadModelOptions['deviceMap']>) =>
      loadModel(FOLDER, { ...OPTIONS, deviceMap });
    await expect(load({ 'transformer.h.00': 'cpu:0', '': 'cpu:0' })).rejects.toMatchObject({
      code: 'device_map_invalid',
      hint: expect.stringContaining('did you mean'),
    });
    await expect(load({ 'transformer.h': 'cpu:0' })).rejects.toThrow(DeviceMapError);
    await expect(load({ '': { device: 'cpu:0', execute_on: 'cpu:1' } })).rejects.toMatchObject({
      code: 'offload_unsupported',
    });
    await expect(load({ '': 'cuda:0' })).rejects.toThrow(/expected one of the devices cpu:0, cpu:1/);
  });

  it('surfaces an error inside one worker as a typed error, stops the other, and leaves nothing hanging', async () => {
    const model = await loadModel(FOLDER, OPTIONS);
    const run = model.executors.run.bind(model.executors);
    // A step whose ids lie outside the vocabulary passes every check of the API; the embedding op on the first device refuses it.
    const step = (await import('../packages/dispatch/dist/scheduler.js')).describeBatch(
      0,
      1,
      [{ ids: Int32Array.of(5, 9999), cached: 0, blocks: Int32Array.of(0) }],
      8,
      'all',
      [0],
    );
    const error = await run({ steps: [step] }, () => {}).catch((thrown: unknown) => thrown);
    expect(MetashardError.isInstance(error)).toBe(true);
    expect((error as MetashardError).message).toMatch(/cpu:0.*embedding/);
    expect((await collect(model.generate('Once', { maxNewTokens: 3, ignoreEos: true }))).ids[0]).toHaveLength(3);
    await model.dispose();
  });

  it('surfaces the loss of a worker and refuses further work', async () => {
    const model = await loadModel(FOLDER, OPTIONS);
    const pools = model.executors.pools;
    const generating = collect(model.generate('Once', { maxNewTokens: 120, ignoreEos: true }));
    await pools[1]?.threads[0]?.terminate();
    await expect(generating).rejects.toMatchObject({ code: expect.stringMatching(/executor_lost/) });
    await expect(model.forward({ inputIds: [[1]] })).rejects.toMatchObject({ code: 'executor_lost' });
    await model.dispose();
  });

  it('leaves nothing behind when a load is aborted', async () => {
    const controller = new AbortController();
    const loading = loadModel(FOLDER, { ...OPTIONS, signal: controller.signal, onProgress: () => controller.abort() });
    await expect(loading).rejects.toMatchObject({ name: 'AbortError' });
  });

  it('names the device that ran out when a budget is smaller than what it takes', async () => {
    // The plan refuses first; asked directly, the device does.
    const { DeviceContext, parseDevice } = await import('metashard');
    const context = new DeviceContext(parseDevice('cpu:7'), 1000);
    expect(() => context.alloc(2000)).toThrow(OutOfMemoryError);
    context.close();
  });
});

describe('resident memory', () => {
  const MIB = 2 ** 20;
  const run = (script: string, ...args: string[]): string =>
    execFileSync(process.execPath, [fileURLToPath(new URL(script, import.meta.url)), ...args], { encoding: 'utf8' });
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'metashard-resident-'));
    const attention = { num_attention_heads: 12, num_key_value_heads: 4, num_hidden_layers: 6 };
    const shape = { hidden_size: 768, intermediate_size: 2048, vocab_size: 16_000, max_position_embeddings: 1024 };
    const config = join(folder, 'shape.json');
    writeFileSync(config, JSON.stringify({ model_type: 'llama', hidden_act: 'silu', ...attention, ...shape }));
    run('../bench/make-model.mjs', config, join(folder, 'model'));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it.each([
    { devices: ['cpu'], loadIn8bit: true },
    { devices: ['cpu'], loadIn8bit: false },
    { devices: ['cpu:0', 'cpu:1'], deviceMap: 'balanced', loadIn8bit: true },
  ])('of a load and a full forward grows by the plan and at most 60 MB: %j', (options) => {
    const all = JSON.stringify({ maxSeqLen: 512, maxBatchSize: 2, ...options });
    const measured = JSON.parse(run('./resident-memory.mjs', join(folder, 'model'), all)) as Record<string, number>;
    const { baselineBytes = 0, peakBytes = 0, plannedBytes = 0 } = measured;
    expect(plannedBytes).toBeGreaterThan(100 * MIB);
    expect(peakBytes - baselineBytes).toBeLessThanOrEqual(plannedBytes + 60e6);
    expect(peakBytes - baselineBytes).toBeGreaterThan(0.8 * plannedBytes);
  });
});
