/**
 * saveCheckpoint: what is saved loads again to the same bits, in float and 8 bits, whole and in shards; an interrupted
 * save leaves nothing.
 */
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type LoadModelOptions, loadModel, openCheckpoint } from 'metashard';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { MODELS, relativeError, SHIPPED } from './golden-models.js';

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'metashard-save-'));
});
afterAll(() => rm(folder, { recursive: true }));

const BASE: LoadModelOptions = { devices: ['cpu:0', 'cpu:1'], deviceMap: 'balanced', maxSeqLen: 32 };
const ids = [[1, 103, 107, 161, 178, 132]];

async function logits(
  source: string,
  options: LoadModelOptions,
  saveTo?: { target: string; maxShardSize?: string },
): Promise<Float32Array> {
  const model = await loadModel(source, { ...BASE, ...options });
  if (saveTo !== undefined)
    await model.saveCheckpoint(
      saveTo.target,
      saveTo.maxShardSize === undefined ? {} : { maxShardSize: saveTo.maxShardSize },
    );
  const result = (await model.forward({ inputIds: ids })).logits.toFloat32Array();
  await model.dispose();
  return result;
}

describe.each([
  ['bloom-stories', `${SHIPPED}bloom-stories`],
  ['stories260K', `${SHIPPED}stories260K`],
  ['stories260K saved by transformers in 8 bits', `${MODELS}stories260K-bnb8`],
])('%s', (name, source) => {
  it.each([
    ['float', { loadIn8bit: false }],
    ['8 bits', { loadIn8bit: true }],
  ] as const)('%s: saved, loaded without flags, the same bits', async (kind, options) => {
    const target = join(folder, `${name}-${kind}`);
    const want = await logits(source, options, { target });
    expect(await logits(target, {})).toEqual(want);
    const sharded = join(folder, `${name}-${kind}-shards`);
    expect(await logits(source, options, { target: sharded, maxShardSize: '200KB' })).toEqual(want);
    expect((await openCheckpoint(sharded)).files.length).toBeGreaterThan(1);
    expect(await logits(sharded, { devices: ['cpu'] })).toEqual(want);
  });
});

it.each([
  ['tied', `${SHIPPED}stories260K`],
  ['untied', `${MODELS}llama`],
])('an int8 head, %s: saved, loaded without flags, the same bits; not in the skip list', async (name, source) => {
  const target = join(folder, `head-${name}`);
  const want = await logits(source, { loadIn8bit: true, llmInt8Head: true }, { target });
  expect(await logits(target, {})).toEqual(want);
  const { tensors } = await openCheckpoint(target);
  // Embeddings are float in every file: nobody else reads a table of them in 8 bits.
  expect(tensors.get('lm_head.weight')?.dtype).toBe('int8');
  expect(tensors.get('lm_head.SCB')?.dtype).toBe('float32');
  expect(tensors.get('model.embed_tokens.weight')?.dtype).toMatch(/^float/);
  expect(tensors.has('model.embed_tokens.SCB')).toBe(false);
  const config = JSON.parse(await readFile(join(target, 'config.json'), 'utf8'));
  expect(config.tie_word_embeddings).toBe(false);
  expect(config.quantization_config.llm_int8_skip_modules).toEqual([]);
  expect(config.quantization_config.llm_int8_threshold).toBe(6);
  const again = join(folder, `head-${name}-again`);
  expect(await logits(target, {}, { target: again, maxShardSize: '20KB' })).toEqual(want);
  expect(await logits(again, {})).toEqual(want);
  const float = await logits(target, { llmInt8Head: false });
  expect(float).not.toEqual(want);
  expect(relativeError(float, want)).toBeLessThan(0.02);
});

it.each([
  ['float activations', { int8Activations: 'float' }],
  ['bfloat16 activations, row by row', { int8Activations: 'bfloat16', outliers: 'per-row' }],
  ['outliers row by row and a threshold', { outliers: 'per-row', llmInt8Threshold: 2 }],
] as const)('%s are saved, and what is asked for wins', async (name, options) => {
  const source = `${SHIPPED}stories260K`;
  const target = join(folder, name.replaceAll(' ', '-'));
  const want = await logits(source, { loadIn8bit: true, ...options }, { target });
  expect(await logits(target, {})).toEqual(want);
  const plain = await logits(source, { loadIn8bit: true });
  expect(plain).not.toEqual(want);
  const asked = { int8Activations: 'int8', outliers: 'per-batch', llmInt8Threshold: 6 } as const;
  expect(await logits(target, asked)).toEqual(plain);
});

it('refuses a saved setting it does not know', async () => {
  const target = join(folder, 'unknown-setting');
  await logits(`${SHIPPED}stories260K`, { loadIn8bit: true, outliers: 'per-row' }, { target });
  const file = join(target, 'config.json');
  await writeFile(file, (await readFile(file, 'utf8')).replace('"per-row"', '"per-page"'));
  await expect(loadModel(target, BASE)).rejects.toMatchObject({
    name: 'UnsupportedConfigError',
    message: 'config.json quantization_config.outliers: expected one of per-batch, per-row, got "per-page"',
  });
});

it('writes bitsandbytes layout and the full skip list', async () => {
  const target = join(folder, 'layout');
  await logits(`${SHIPPED}bloom-stories`, { loadIn8bit: true }, { target });
  const { tensors } = await openCheckpoint(target);
  const key = 'transformer.h.0.mlp.dense_h_to_4h';
  expect(tensors.get(`${key}.weight`)).toMatchObject({ dtype: 'int8', shape: [768, 192] });
  expect(tensors.get(`${key}.SCB`)).toMatchObject({ dtype: 'float32', shape: [768] });
  expect(tensors.get(`${key}.weight_format`)).toMatchObject({ dtype: 'uint8', shape: [] });
  const text = await readFile(join(target, 'config.json'), 'utf8');
  expect(text).toContain('"llm_int8_threshold": 6.0'); // transformers refuses an integer
  const config = JSON.parse(text);
  expect(config.quantization_config).toMatchObject({
    load_in_8bit: true,
    llm_int8_threshold: 6,
    llm_int8_skip_modules: ['lm_head'],
  });
});

it('refuses a folder that is not empty, and leaves nothing when it fails', async () => {
  const model = await loadModel(`${SHIPPED}stories260K`, { devices: ['cpu'], maxSeqLen: 16 });
  const full = await mkdtemp(join(folder, 'full-'));
  await writeFile(join(full, 'something'), '');
  await expect(model.saveCheckpoint(full)).rejects.toMatchObject({ code: 'argument_invalid' });
  await expect(model.saveCheckpoint('/proc/metashard/cannot')).rejects.toMatchObject({ code: 'checkpoint_invalid' });
  expect((await readdir(folder)).filter((name) => name.includes('.tmp'))).toEqual([]);
  await model.dispose();
});
