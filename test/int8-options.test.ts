/**
 * The options beside load_in_8bit, end to end: float activations, an int8 head (and the table tied to it), a 16-bit cache. Numbers against the float
 * model, bytes in the plan, the same bits over devices and from a packed store, refusals.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type DevicePlan, type LoadModelOptions, loadModel, native, OPS, planModel } from 'metashard';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { MODELS, relativeError, SHIPPED } from './golden-models.js';

const IDS = [Array.from({ length: 60 }, (_, i) => 3 + ((i * 37) % 400))];
const BASE: LoadModelOptions = { devices: ['cpu'], maxSeqLen: 64 };
const INT8: LoadModelOptions = { ...BASE, loadIn8bit: true };

async function logits(folder: string, options: LoadModelOptions): Promise<Float32Array> {
  const model = await loadModel(folder, options);
  const got = (await model.forward({ inputIds: IDS })).logits.toFloat32Array();
  await model.dispose();
  return got;
}

async function story(folder: string, options: LoadModelOptions): Promise<number[]> {
  const model = await loadModel(folder, options);
  const ids: number[] = [];
  for await (const piece of model.generate([1, 403, 407], { maxNewTokens: 30, ignoreEos: true }))
    ids.push(...piece.tokenIds);
  await model.dispose();
  return ids;
}

const bytes = (plan: DevicePlan, kind: 'weightsBytes' | 'kvCacheBytes'): number =>
  plan.devices.reduce((sum, device) => sum + device[kind], 0);

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'metashard-int8-options-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

describe.each(['stories260K', 'bloom-stories'])('%s', (name) => {
  const model = `${SHIPPED}${name}`;
  const float = logits(model, BASE);
  const published = logits(model, INT8);

  it('float activations: closer to the float model than LLM.int8()', async () => {
    const got = relativeError(await logits(model, { ...INT8, int8Activations: 'float' }), await float);
    expect(got).toBeLessThan(0.7 * relativeError(await published, await float));
    expect(got).toBeGreaterThan(0);
  });

  it('bfloat16 activations: nearly as close', async () => {
    const exact = await logits(model, { ...INT8, int8Activations: 'float' });
    expect(relativeError(await logits(model, { ...INT8, int8Activations: 'bfloat16' }), exact)).toBeLessThan(5e-3);
  });

  it('an int8 head: close, and the tied table is stored once, in 8 bits', async () => {
    const options: LoadModelOptions = { ...INT8, llmInt8Head: true, int8Activations: 'float' };
    expect(relativeError(await logits(model, options), await float)).toBeLessThan(0.02);
    expect(relativeError(await logits(model, { ...INT8, llmInt8Head: true }), await published)).toBeLessThan(0.02);
    const before = native().opCalls(OPS.int8_embedding.code);
    await logits(model, options);
    expect(native().opCalls(OPS.int8_embedding.code) - before).toBe(1);
    const [wide, narrow] = [await planModel(model, INT8), await planModel(model, options)];
    const { vocabSize, hiddenSize } = await sizes(model);
    const saved = bytes(wide, 'weightsBytes') - bytes(narrow, 'weightsBytes');
    const elementBytes = name === 'stories260K' ? 4 : 2;
    const packed = vocabSize * hiddenSize + (vocabSize / 16) * 64 + vocabSize * 4; // rows, row sums, scales
    expect(saved).toBe(vocabSize * hiddenSize * elementBytes - packed);
    expect(narrow.skipped).toEqual([]);
  });

  it('a 16-bit cache: close, and half the bytes', async () => {
    for (const [kvCacheDtype, bound] of [
      ['bfloat16', 0.01],
      ['float16', 0.002],
    ] as const) {
      const options: LoadModelOptions = { ...BASE, kvCacheDtype };
      expect(relativeError(await logits(model, options), await float)).toBeLessThan(bound);
      const [wide, narrow] = [await planModel(model, BASE), await planModel(model, options)];
      expect(bytes(narrow, 'kvCacheBytes')).toBe(bytes(wide, 'kvCacheBytes') / 2);
    }
  });

  it.each<[string, LoadModelOptions]>([
    ['all of them', { int8Activations: 'float', llmInt8Head: true, kvCacheDtype: 'bfloat16' }],
    ['bfloat16 activations', { int8Activations: 'bfloat16', llmInt8Head: true }],
    ['LLM.int8() with an int8 head', { llmInt8Head: true, kvCacheDtype: 'float16' }],
  ])('%s: the same bits and text over two devices and from a packed store', async (_, options) => {
    const one = { ...INT8, ...options };
    const want = await logits(model, one);
    const two: LoadModelOptions = { ...one, devices: ['cpu:0', 'cpu:1'], deviceMap: 'balanced' };
    expect(await logits(model, two)).toEqual(want);
    const offloadFolder = mkdtempSync(join(folder, 'store-'));
    expect(await logits(model, { ...one, offloadFolder, packedStore: 'write' })).toEqual(want);
    const quantized = native().opCalls(OPS.quantize_weight.code);
    expect(await logits(model, { ...two, offloadFolder })).toEqual(want);
    expect(native().opCalls(OPS.quantize_weight.code)).toBe(quantized);
    expect(await story(model, two)).toEqual(await story(model, one));
  });
});

async function sizes(model: string): Promise<{ vocabSize: number; hiddenSize: number }> {
  const loaded = await loadModel(model, BASE);
  const { vocabSize, hiddenSize } = loaded.config;
  await loaded.dispose();
  return { vocabSize, hiddenSize };
}

it('an untied head: its own int8 matrix, the embeddings stay as they are', async () => {
  const model = `${MODELS}llama`;
  const ids = [[1, 5, 9, 2]];
  const of = async (options: LoadModelOptions): Promise<Float32Array> => {
    const loaded = await loadModel(model, { ...INT8, ...options });
    const got = (await loaded.forward({ inputIds: ids })).logits.toFloat32Array();
    await loaded.dispose();
    return got;
  };
  const before = native().opCalls(OPS.int8_embedding.code);
  expect(relativeError(await of({ llmInt8Head: true }), await of({}))).toBeLessThan(0.02);
  expect(native().opCalls(OPS.int8_embedding.code)).toBe(before);
});

it('llm_int8_head without 8 bits is refused', async () => {
  await expect(planModel(`${SHIPPED}stories260K`, { ...BASE, llmInt8Head: true })).rejects.toMatchObject({
    code: 'config_invalid',
    message: 'llm_int8_head: expected load_in_8bit: true beside it, got a float model',
  });
});
