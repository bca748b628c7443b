/** saveCheckpoint: what is saved loads again to the same bits, in float and 8 bits, whole and in shards; an interrupted save leaves nothing. */
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
  ['tied', `${SHIPPED}stories260K`, 'model.embed_tokens'],
  ['untied', `${MODELS}llama`, 'lm_head'],
])(
  'an int8 head, %s: saved, loaded without flags, the same bits; not in the skip list',
  async (name, source, table) => {
    const target = join(folder, `head-${name}`);
    const want = await logits(source, { loadIn8bit: true, llmInt8Head: true }, { target });
    expect(await logits(target, {})).toEqual(want);
    const { tensors } = await openCheckpoint(target);
    expect(tensors.get(`${table}.weight`)?.dtype).toBe('int8');
    expect(tensors.get(`${table}.SCB`)?.dtype).toBe('float32');
    expect([...tensors.keys()].filter((key) => /(embed_tokens|lm_head)\.weight$/.test(key))).toHaveLength(
      name === 'tied' ? 1 : 2,
    );
    const { quantization_config: saved } = JSON.parse(await readFile(join(target, 'config.json'), 'utf8'));
    expect(saved.llm_int8_skip_modules).toEqual([]);
    expect(saved.llm_int8_threshold).toBe(6);
    const float = await logits(target, { llmInt8Head: false });
    expect(float).not.toEqual(want);
    expect(relativeError(float, want)).toBeLessThan(0.02);
  },
);

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
