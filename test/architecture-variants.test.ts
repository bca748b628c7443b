/**
 * What the golden models do not show of OPT, GPT-2 and T5: config fields that change the computation (against
 * transformers: fixtures/architectures), Conv1D's transposed weights in every way they are stored, parameter counts,
 * and T5 as a tree.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  buildModel,
  findTransposedParameters,
  initEmptyWeights,
  type LoadModelOptions,
  loadCheckpointAndDispatch,
  loadModel,
  NotCompiledError,
  nn,
  openCheckpoint,
  replaceLinear,
  saveSafetensors,
  setModuleTensorToDevice,
  tensor,
} from 'metashard';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { distance, MODELS, readWhole, relativeError } from './golden-models.js';

const VARIANTS = fileURLToPath(new URL('./fixtures/architectures/', import.meta.url));

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'metashard-variants-'));
});
afterAll(() => rm(folder, { recursive: true }));

function variant(name: string) {
  const expected = readWhole(`${VARIANTS}${name}/expected.safetensors`);
  const { shape, data } = expected.get('input_ids') as { shape: number[]; data: number[] };
  const [rows, columns] = shape as [number, number];
  const ids = Array.from({ length: rows }, (_, row) => data.slice(row * columns, (row + 1) * columns));
  return { source: `${VARIANTS}${name}`, ids, floats: (key: string) => expected.get(key)?.data as Float32Array };
}

async function forward(source: string, ids: number[][], options: LoadModelOptions = {}, saveTo?: string) {
  const model = await loadModel(source, { devices: ['cpu'], maxSeqLen: 16, maxBatchSize: 2, ...options });
  if (saveTo !== undefined) await model.saveCheckpoint(saveTo);
  const { logits, hiddenStates = [] } = await model.forward({ inputIds: ids }, { outputHiddenStates: true });
  const { ignoredFields } = model.config;
  await model.dispose();
  return { logits: logits.toFloat32Array(), hidden: hiddenStates.map((one) => one.toFloat32Array()), ignoredFields };
}

describe.each(['opt-350m-traits', 'opt-plain-traits', 'gpt2-scaled', 'gpt2-unscaled-f16'])('%s', (name) => {
  const { source, ids, floats } = variant(name);

  it.each([1, 2])('computes what transformers does, over %i devices', async (count) => {
    const devices = ['cpu:0', 'cpu:1'].slice(0, count);
    const { logits, hidden, ignoredFields } = await forward(source, ids, { devices, deviceMap: 'balanced' });
    expect(distance(logits, floats('logits'))).toBeLessThan(1e-5);
    for (const [i, got] of hidden.entries()) expect(distance(got, floats(`hidden_${i}`))).toBeLessThan(1e-5);
    expect(ignoredFields).toEqual([]);
  });
});

describe("Conv1D's weights", () => {
  it('are held as a Linear holds them, and stored the other way round', () => {
    const layer = new nn.Conv1D(2, 3);
    layer.loadStateDict(
      new Map([
        [
          'weight',
          tensor([
            [1, 2, 3],
            [4, 5, 6],
          ]),
        ],
        ['bias', tensor([0, 0, 10])],
      ]),
    );
    expect(layer.weight.toArray()).toEqual([
      [1, 4],
      [2, 5],
      [3, 6],
    ]);
    expect(layer.forward(tensor([[1, 10]])).toArray()).toEqual([[41, 52, 73]]);
    expect(layer.stateDict().get('weight')?.contiguous().toArray()).toEqual([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    expect(() =>
      layer.loadStateDict(
        new Map([
          [
            'weight',
            tensor([
              [1, 4],
              [2, 5],
              [3, 6],
            ]),
          ],
        ]),
        { strict: false },
      ),
    ).toThrow('weight: expected shape [2, 3], got [3, 2]');
  });

  it('are placed tensor by tensor as the module holds them', () => {
    const layer = new nn.Conv1D(2, 3, { device: 'meta' });
    setModuleTensorToDevice(layer, 'weight', 'cpu', {
      value: [
        [1, 4],
        [2, 5],
        [3, 6],
      ],
    });
    expect(layer.stateDict().get('weight')?.contiguous().toArray()).toEqual([
      [1, 2, 3],
      [4, 5, 6],
    ]);
  });

  it('become 8-bit rows, which are stored as they are', () => {
    const tree = new nn.Sequential(new nn.Conv1D(2, 3));
    const float = new Map(new nn.Sequential(new nn.Conv1D(2, 3)).stateDict());
    replaceLinear(tree);
    expect(findTransposedParameters(tree)).toEqual(new Set(['0.weight']));
    tree.loadStateDict(float);
    tree.to('cpu');
    const saved = tree.stateDict();
    expect(saved.get('0.weight')).toMatchObject({ dtype: 'int8', shape: [3, 2] });
    const again = new nn.Sequential(new nn.Conv1D(2, 3, { device: 'meta' }));
    replaceLinear(again);
    again.loadStateDict(saved);
    const x = tensor([[0.5, -2]]);
    expect(again.forward(x).toArray()).toEqual(tree.forward(x).toArray());
  });

  const ids = [[5, 17, 3, 29, 11, 8, 36, 2]];
  it.each([
    ['float', false],
    ['8 bits', true],
  ] as const)('of a model saved in %s and loaded again give the same bits', async (kind, loadIn8bit) => {
    for (const source of [`${MODELS}gpt2`, `${VARIANTS}gpt2-unscaled-f16`]) {
      const target = await mkdtemp(join(folder, 'saved-'));
      const devices = ['cpu:0', 'cpu:1'];
      const { logits } = await forward(source, ids, { devices, deviceMap: 'balanced', loadIn8bit }, target);
      expect((await forward(target, ids)).logits).toEqual(logits);
      const stored = (await openCheckpoint(source)).tensors;
      const { tensors } = await openCheckpoint(target);
      const key = 'transformer.h.1.attn.c_attn.weight';
      const { shape = [], dtype } = stored.get(key) ?? {};
      const want = loadIn8bit ? { dtype: 'int8', shape: shape.toReversed() } : { dtype, shape };
      expect(tensors.get(key), kind).toMatchObject(want);
    }
  });

  it('larger than a panel are turned, converted and quantized whole', async () => {
    const tree = new nn.Sequential(new nn.Conv1D(100, 30_001));
    const target = await mkdtemp(join(folder, 'panels-'));
    await saveSafetensors(join(target, 'model.safetensors'), tree.stateDict());
    const x = tensor(
      Float32Array.from({ length: 300 }, (_, i) => Math.sin(i)),
      { shape: [3, 100] },
    );
    for (const int8 of [false, true]) {
      const empty = initEmptyWeights(() => new nn.Sequential(new nn.Conv1D(100, 30_001)));
      for (const one of int8 ? [tree, empty] : []) replaceLinear(one);
      const inputs = { x: { shape: ['tokens', 100] } } as const;
      const dispatched = await loadCheckpointAndDispatch(empty, target, { devices: ['cpu'], inputs, maxSeqLen: 8 });
      expect((await dispatched.forward({ x })).toFloat32Array()).toEqual(tree.to('cpu').forward(x).toFloat32Array());
      await dispatched.dispose();
    }
  });

  it('are the same in float whether the checkpoint has them in float or 8 bits', async () => {
    const target = await mkdtemp(join(folder, 'dequantized-'));
    const { logits } = await forward(`${MODELS}gpt2`, ids, { loadIn8bit: true }, target);
    const dequantized = await forward(target, ids, { loadIn8bit: false });
    expect(relativeError(dequantized.logits, logits)).toBeLessThan(0.05);
  });
});

describe('parameters on meta', () => {
  const count = (raw: Record<string, unknown>): number =>
    buildModel(raw)
      .model.parameters()
      .reduce((sum, parameter) => sum + parameter.numel, 0);
  const opt = (hidden: number, layers: number, heads: number) => ({
    model_type: 'opt',
    hidden_size: hidden,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    ffn_dim: 4 * hidden,
    vocab_size: 50272,
  });
  const t5 = { model_type: 't5', d_model: 1024, d_kv: 128, d_ff: 65536, num_layers: 24, num_heads: 128 };
  const flan = { d_model: 4096, d_kv: 64, d_ff: 10240, num_layers: 24, num_heads: 64, tie_word_embeddings: false };
  const llama = { model_type: 'llama', hidden_size: 8192, intermediate_size: 28672, num_hidden_layers: 80 };
  it.each([
    ['OPT-350m', { ...opt(1024, 24, 16), word_embed_proj_dim: 512, do_layer_norm_before: false }, 331_196_416],
    ['OPT-13B', opt(5120, 40, 40), 12_853_473_280],
    ['GPT-2', { model_type: 'gpt2' }, 124_439_808],
    ['GPT-2 XL', { model_type: 'gpt2', n_embd: 1600, n_layer: 48, n_head: 25 }, 1_557_611_200],
    ['T5-11B', t5, 11_307_321_344],
    ['T5 1.1 XXL', { ...t5, ...flan, feed_forward_proj: 'gated-gelu' }, 11_135_332_352],
    ['Llama 3 70B', { ...llama, num_attention_heads: 64, num_key_value_heads: 8, vocab_size: 128_256 }, 70_553_706_496],
  ])('%s', (_, raw, parameters) => {
    expect(count(raw)).toBe(parameters);
  });
});

describe('T5', () => {
  it('says what it lacks when it is loaded', async () => {
    await expect(loadModel(`${MODELS}t5`, { devices: ['cpu'] })).rejects.toThrow(NotCompiledError);
  });

  it('keeps wo in float in 8 bits', () => {
    const { model, architecture } = buildModel({ model_type: 't5' });
    const { replaced, skipped } = replaceLinear(model, { skip: architecture.keepInFloat ?? [] });
    expect(replaced).toHaveLength(6 * 5 + 6 * 9);
    expect(new Set(skipped.map(({ name }) => name.split('.').at(-1)))).toEqual(new Set(['wo', 'lm_head']));
  });
});
