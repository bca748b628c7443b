/**
 * The options beside load_in_8bit, end to end: float activations, an int8 head (and the table tied to it), a 16-bit
 * cache. Numbers against the float model, bytes in the plan, the same bits over devices and from a packed store,
 * refusals.
 */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  ConfigError,
  type DevicePlan,
  InsufficientMemoryError,
  type LoadModelOptions,
  loadModel,
  native,
  OPS,
  planModel,
  type ThresholdChoice,
} from 'metashard';
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

  it('an int8 cache: close, and a byte a value and a scale a row', async () => {
    const options: LoadModelOptions = { ...BASE, kvCacheDtype: 'int8' };
    expect(relativeError(await logits(model, options), await float)).toBeLessThan(0.02);
    const [wide, narrow] = [await planModel(model, BASE), await planModel(model, options)];
    const { headDim } = await sizes(model);
    expect(bytes(narrow, 'kvCacheBytes')).toBe((bytes(wide, 'kvCacheBytes') / headDim / 4) * (headDim + 4));
  });

  it('bfloat16 attention: close', async () => {
    const got = relativeError(await logits(model, { ...BASE, attention: 'bfloat16' }), await float);
    expect(got).toBeLessThan(0.01);
  });

  it.each<[string, LoadModelOptions]>([
    ['all of them', { int8Activations: 'float', llmInt8Head: true, kvCacheDtype: 'bfloat16' }],
    ['bfloat16 activations', { int8Activations: 'bfloat16', llmInt8Head: true }],
    ['bfloat16 attention over an int8 cache', { attention: 'bfloat16', kvCacheDtype: 'int8' }],
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

async function sizes(model: string): Promise<{ vocabSize: number; hiddenSize: number; headDim: number }> {
  const loaded = await loadModel(model, BASE);
  const { vocabSize, hiddenSize, headDim } = loaded.config;
  await loaded.dispose();
  return { vocabSize, hiddenSize, headDim };
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

/**
 * The same float model with rows that 8 bits serve badly: one column of every weight behind a norm is 1000 times as
 * large, the norm's weight there as much smaller, so that the column sets the rows' scales and is never an outlier.
 * For a float32 safetensors file of a Llama.
 */
function unbalanceColumn(model: string, column: number): void {
  const file = join(model, 'model.safetensors');
  const bytes = readFileSync(file);
  const data = 8 + Number(bytes.readBigUInt64LE(0));
  const header: Record<string, { shape: number[]; data_offsets: [number, number] }> = JSON.parse(
    bytes.toString('utf8', 8, data),
  );
  for (const [name, { shape, data_offsets: range }] of Object.entries(header)) {
    const isNorm = /\.\w+_layernorm\./.test(name);
    if (!isNorm && !/[qkv]_proj|gate_proj|up_proj/.test(name)) continue;
    const step = 4 * (isNorm ? (shape[0] as number) : (shape[1] as number));
    for (let at = data + range[0] + 4 * column; at < data + range[1]; at += step)
      bytes.writeFloatLE(bytes.readFloatLE(at) * (isNorm ? 1e-3 : 1e3), at);
  }
  writeFileSync(file, bytes);
}

describe('llm_int8_threshold: auto', () => {
  const source = `${SHIPPED}stories260K`;
  let text = '';
  beforeAll(() => {
    text = join(folder, 'story.txt');
    writeFileSync(text, 'Once upon a time there was a little dog. He liked to run and play with his ball. '.repeat(8));
  });
  const logitsOf = async (from: string, options: LoadModelOptions): Promise<[Float32Array, ThresholdChoice | null]> => {
    const model = await loadModel(from, { ...BASE, ...options });
    const got = (await model.forward({ inputIds: IDS })).logits.toFloat32Array();
    const { thresholdChoice } = model;
    await model.dispose();
    return [got, thresholdChoice];
  };

  it('measures on the text, loads with what it chose, and says so', async () => {
    const saved = join(folder, 'saved');
    const model = await loadModel(source, { ...INT8, llmInt8Threshold: 0.5 });
    await model.saveCheckpoint(saved);
    await model.dispose();
    const messages: string[] = [];
    const logger = { info: (message: string) => void messages.push(message), warn: () => {} };
    const auto = { llmInt8Threshold: 'auto', llmInt8ThresholdText: text, logger } as const;
    const [got, choice] = await logitsOf(saved, auto);
    expect(choice?.threshold).toBeGreaterThanOrEqual(2);
    expect(choice?.measured.at(-1)?.threshold).toBe(choice?.threshold);
    expect(choice?.measured.at(-1)?.difference).toBeLessThanOrEqual(0.01);
    expect(messages[0]).toBe(`llm_int8_threshold: auto: ${choice?.summary}`);
    expect(choice?.summary).toMatch(/^threshold [\d.]+ stays within 0\.01 nats of float \(measured /);
    expect([got, null]).toEqual(await logitsOf(saved, { llmInt8Threshold: choice?.threshold as number }));
    expect(got).not.toEqual((await logitsOf(saved, {}))[0]);
  });

  it.each([
    [{}, 'llm_int8_threshold: auto: expected llm_int8_threshold_text beside it, got none'],
    [{ llmInt8ThresholdText: 'x.txt', loadIn8bit: false }, 'expected load_in_8bit: true beside it, got a float model'],
    [
      { llmInt8ThresholdText: 'x.txt', int8Activations: 'float' },
      'expected int8_activations: int8 beside it, got float',
    ],
    [{ llmInt8ThresholdText: '/no/such.txt' }, 'llm_int8_threshold_text: expected a readable file, got ENOENT'],
    [
      { llmInt8ThresholdText: 'x.txt', llmInt8Threshold: 5 },
      'llm_int8_threshold_text: expected llm_int8_threshold: auto beside it, got 5',
    ],
  ] as const)('refuses %j', async (options, message) => {
    const load = loadModel(source, { ...INT8, llmInt8Threshold: 'auto', ...options });
    await expect(load).rejects.toMatchObject({ name: 'ConfigError', message: expect.stringContaining(message) });
  });

  it('is refused where no threshold stays within the bound, with what was measured and what to set instead', async () => {
    const unbalanced = join(folder, 'unbalanced');
    cpSync(source, unbalanced, { recursive: true });
    unbalanceColumn(unbalanced, 5);
    const load = loadModel(unbalanced, { ...INT8, llmInt8Threshold: 'auto', llmInt8ThresholdText: text });
    const error = (await load.catch((one: unknown) => one)) as ConfigError & { details: { choice: ThresholdChoice } };
    expect(error).toBeInstanceOf(ConfigError);
    expect(error.hint).toBe('set int8_activations: float, or a threshold');
    const { choice } = error.details;
    expect([choice.threshold, choice.measured.map(({ threshold }) => threshold)]).toEqual([null, [6, 5, 4, 3, 2.5, 2]]);
    for (const { difference } of choice.measured) expect(difference).toBeGreaterThan(0.01);
    const rises = choice.measured.map((one) => `${one.threshold}: +${one.difference.toFixed(4)}`).join(', ');
    expect(error.message).toBe(
      'llm_int8_threshold: auto: no threshold stays within 0.01 nats of float ' +
        `(measured ${rises}); int8_activations: float keeps more`,
    );
  });

  it('is refused before it is measured where the model does not fit', async () => {
    const options = {
      llmInt8Threshold: 'auto',
      llmInt8ThresholdText: '/no/such.txt',
      maxMemory: { cpu: '1KiB' },
    } as const;
    const load = loadModel(source, { ...INT8, ...options });
    await expect(load).rejects.toBeInstanceOf(InsufficientMemoryError);
  });
});
