/**
 * The packed store: written once, used in place, the same bits; of other files or another layout it is not used; broken
 * it is a typed error.
 */
import {
  cpSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CheckpointError, checkStore, type LoadModelOptions, loadModel, native, OPS } from 'metashard';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { MODELS, SHIPPED } from './golden-models.js';

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'metashard-store-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

const IDS = [[1, 103, 107, 61, 178, 132]];
const BASE: LoadModelOptions = { devices: ['cpu:0', 'cpu:1'], deviceMap: 'balanced', maxSeqLen: 32 };
const stores = (where: string): string[] => readdirSync(where).map((name) => join(where, name));
const quantized = (): number => native().opCalls(OPS.quantize_weight.code);

async function logits(model: string, options: LoadModelOptions): Promise<Float32Array> {
  const loaded = await loadModel(model, { ...BASE, ...options });
  const got = (await loaded.forward({ inputIds: IDS })).logits.toFloat32Array();
  await loaded.dispose();
  return got;
}

describe.each([
  ['bloom-stories', `${SHIPPED}bloom-stories`, true],
  ['bloom-stories in float', `${SHIPPED}bloom-stories`, false],
  ['opt, whose positions are rows of a table behind a view', `${MODELS}opt`, true],
  ['stories260K saved in 8 bits', `${MODELS}stories260K-bnb8`, true],
] as const)('%s', (name, model, loadIn8bit) => {
  it('gives the same bits from the store as from the checkpoint, without reading or quantizing it again', async () => {
    const offloadFolder = join(folder, name);
    const want = await logits(model, { loadIn8bit, packedStore: 'ignore' });
    expect(await logits(model, { loadIn8bit, offloadFolder, packedStore: 'write' })).toEqual(want);
    expect(stores(offloadFolder)).toHaveLength(1);
    checkStore(stores(offloadFolder)[0] as string);
    const before = quantized();
    expect(await logits(model, { loadIn8bit, offloadFolder })).toEqual(want);
    expect(await logits(model, { loadIn8bit, offloadFolder, devices: ['cpu'], deviceMap: 'auto' })).toEqual(want);
    expect(quantized()).toBe(before);
    expect(stores(offloadFolder)).toHaveLength(1);
  });
});

describe('a store that does not match', () => {
  const copyOf = (name: string): string => {
    const target = join(folder, `model-${name}`);
    cpSync(`${SHIPPED}stories260K`, target, { recursive: true });
    return target;
  };

  it('is not used when the checkpoint changed, or other weights are in 8 bits', async () => {
    const model = copyOf('changed');
    const offloadFolder = join(folder, 'changed');
    await logits(model, { loadIn8bit: true, offloadFolder, packedStore: 'write' });
    const before = quantized();
    utimesSync(join(model, 'model.safetensors'), new Date(), new Date(Date.now() + 5000));
    await logits(model, { loadIn8bit: true, offloadFolder });
    expect(quantized()).toBeGreaterThan(before);
    await logits(model, { loadIn8bit: true, offloadFolder, packedStore: 'write', llmInt8SkipModules: ['mlp'] });
    expect(stores(offloadFolder)).toHaveLength(2);
  });

  it('is a typed error when it is cut short, and checkStore finds a changed byte', async () => {
    const model = copyOf('broken');
    const offloadFolder = join(folder, 'broken');
    await logits(model, { loadIn8bit: true, offloadFolder, packedStore: 'write' });
    const file = stores(offloadFolder)[0] as string;
    const bytes = readFileSync(file);
    bytes[bytes.length - 100] = (bytes[bytes.length - 100] as number) ^ 1;
    writeFileSync(file, bytes);
    expect(() => checkStore(file)).toThrow(CheckpointError);
    expect(() => checkStore(file)).toThrow(/checksum of chunk 0 differs/);
    truncateSync(file, 5000);
    await expect(logits(model, { loadIn8bit: true, offloadFolder })).rejects.toThrow(CheckpointError);
    writeFileSync(file, 'MSPACKED');
    await expect(logits(model, { loadIn8bit: true, offloadFolder })).rejects.toThrow(/packed store/);
  });

  it('leaves no half of a store when packing is given up', async () => {
    const offloadFolder = join(folder, 'given-up');
    const controller = new AbortController();
    const loading = loadModel(copyOf('given-up'), {
      ...BASE,
      loadIn8bit: true,
      offloadFolder,
      packedStore: 'write',
      signal: controller.signal,
    });
    setTimeout(() => controller.abort(), 1);
    await loading.then(
      (model) => model.dispose(),
      () => {},
    );
    const left = (() => {
      try {
        return stores(offloadFolder);
      } catch {
        return [];
      }
    })();
    expect(left.filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });
});
