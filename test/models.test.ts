/**
 * The golden models end to end through the public API: float and int8 logits, hidden states, padding, greedy text,
 * decoding against a full forward, device maps.
 */
import { type DeviceMap, type LoadedModel, type LoadModelOptions, loadModel, planModel } from 'metashard';
import { describe, expect, it } from 'vitest';
import { distance, floats, type Golden, readGolden, relativeError, rowsOf } from './golden-models.js';

const NAMES = ['bloom', 'llama', 'mistral', 'opt', 'gpt2'] as const;
const SIZES = { dtype: 'float32', maxSeqLen: 64, maxBatchSize: 2 } as const;

async function withModel<T>(
  golden: Golden,
  options: LoadModelOptions,
  use: (model: LoadedModel) => Promise<T>,
): Promise<T> {
  const model = await loadModel(golden.folder, { devices: ['cpu'], ...SIZES, ...options });
  try {
    return await use(model);
  } finally {
    await model.dispose();
  }
}

const logitsOf = async (model: LoadedModel, ids: number[][], attentionMask?: number[][]): Promise<Float32Array> =>
  (
    await model.forward(attentionMask === undefined ? { inputIds: ids } : { inputIds: ids, attentionMask })
  ).logits.toFloat32Array();

async function greedyTokens(model: LoadedModel, prompt: number[], count: number): Promise<number[]> {
  const ids: number[] = [];
  for await (const piece of model.generate([prompt], { maxNewTokens: count, doSample: false, ignoreEos: true }))
    ids.push(...piece.tokenIds);
  return ids;
}

describe.each(NAMES)('%s', (name) => {
  const golden = readGolden(name);
  const ids = rowsOf(golden, 'input_ids');

  it('gives the float32 logits and hidden states of transformers', async () => {
    await withModel(golden, {}, async (model) => {
      const { logits, hiddenStates = [] } = await model.forward({ inputIds: ids }, { outputHiddenStates: true });
      expect(distance(logits.toFloat32Array(), floats(golden, 'logits'))).toBeLessThan(1e-4);
      expect(hiddenStates).toHaveLength(4);
      for (const [i, hidden] of hiddenStates.entries()) {
        expect(distance(hidden.toFloat32Array(), floats(golden, `hidden_${i}`)), `hidden_${i}`).toBeLessThan(1e-4);
      }
    });
  });

  it('honours a left-padded batch: pads are not computed', async () => {
    await withModel(golden, {}, async (model) => {
      const [padded, mask] = [rowsOf(golden, 'padded_input_ids'), rowsOf(golden, 'attention_mask')];
      const got = await logitsOf(model, padded, mask);
      const V = model.config.vocabSize;
      const T = padded[0]?.length as number;
      const last = Float32Array.from([
        ...got.subarray((T - 1) * V, T * V),
        ...got.subarray((2 * T - 1) * V, 2 * T * V),
      ]);
      expect(distance(last, floats(golden, 'padded_logits_last'))).toBeLessThan(1e-4);
      for (const [b, row] of mask.entries()) {
        for (const [t, bit] of row.entries()) {
          if (bit === 0)
            expect(got.subarray((b * T + t) * V, (b * T + t + 1) * V).every((value) => value === 0)).toBe(true);
        }
      }
    });
  });

  it('continues greedily as transformers does', async () => {
    await withModel(golden, {}, async (model) => {
      expect(await greedyTokens(model, ids[0] as number[], golden.greedy.length)).toEqual(golden.greedy);
    });
  });

  it('decodes step by step what a full forward computes', async () => {
    await withModel(golden, {}, async (model) => {
      const prompt = ids[0] as number[];
      const steps: Float32Array[] = [];
      const chosen: number[] = [];
      for await (const piece of model.generate([prompt], { maxNewTokens: 24, ignoreEos: true, outputLogits: true })) {
        chosen.push(...piece.tokenIds);
        steps.push(piece.logits as Float32Array);
      }
      const V = model.config.vocabSize;
      const whole = await logitsOf(model, [[...prompt, ...chosen]]);
      for (const [i, logits] of steps.entries()) {
        const at = prompt.length - 1 + i;
        expect(distance(logits, whole.subarray(at * V, (at + 1) * V)), `step ${i}`).toBeLessThan(3e-5);
      }
    });
  });

  it('gives the int8 logits of the published method', async () => {
    await withModel(golden, { loadIn8bit: true, llmInt8Threshold: 6 }, async (model) => {
      expect(relativeError(await logitsOf(model, ids), floats(golden, 'int8_logits'))).toBeLessThan(4e-3);
    });
  });
});

describe('device maps', () => {
  const golden = readGolden('bloom');
  const ids = rowsOf(golden, 'input_ids');
  const devices = ['cpu:0', 'cpu:1', 'cpu:2'];
  const wholeBlocks: Record<string, DeviceMap | 'balanced'> = {
    'balanced over three': 'balanced',
    'two devices': {
      '': 'cpu:0',
      'transformer.h.1': 'cpu:1',
      'transformer.h.2': 'cpu:1',
      'transformer.ln_f': 'cpu:1',
      lm_head: 'cpu:1',
    },
    'one device visited three times': { '': 'cpu:0', 'transformer.h.0': 'cpu:1', 'transformer.h.2': 'cpu:1' },
    'a tied head that returns to the first device': {
      'transformer.word_embeddings': 'cpu:0',
      transformer: 'cpu:1',
      lm_head: 'cpu:0',
    },
    'a tied head left out of the map': { transformer: 'cpu:2' },
    backwards: { transformer: 'cpu:2', 'transformer.h.1': 'cpu:1', 'transformer.h.2': 'cpu:0', lm_head: 'cpu:0' },
  };
  const cutBlocks: Record<string, DeviceMap> = {
    'attention and mlp apart': {
      '': 'cpu:0',
      'transformer.h.0.mlp': 'cpu:1',
      'transformer.h.1.self_attention': 'cpu:2',
    },
    'one linear elsewhere': { '': 'cpu:0', 'transformer.h.2.mlp.dense_4h_to_h': 'cpu:1' },
  };

  it('a head that auto has return to its table where a copy does not fit: the same bits as one device', async () => {
    const options = { ...SIZES, devices: devices.slice(0, 2), deviceMap: 'auto' } as const;
    const budgets = Array.from({ length: 500 }, (_, i) => (i + 1) * 2 ** 14);
    const tightest = async (): Promise<Record<string, number>> => {
      for (const bytes of budgets) {
        const maxMemory = { 'cpu:0': bytes, 'cpu:1': bytes };
        const plan = await planModel(golden.folder, { ...options, maxMemory }).catch(() => undefined);
        if (plan !== undefined) return maxMemory;
      }
      throw new Error('no budget fits');
    };
    const maxMemory = await tightest();
    const got = await withModel(golden, { ...options, maxMemory }, (model) => {
      expect(model.plan.segments.map(({ device }) => device)).toEqual(['cpu:0', 'cpu:1', 'cpu:0']);
      expect(model.plan.copies).toEqual([]);
      return logitsOf(model, ids);
    });
    expect(got).toEqual(await withModel(golden, {}, (model) => logitsOf(model, ids)));
  });

  for (const loadIn8bit of [false, true]) {
    const reference = withModel(golden, { loadIn8bit }, (model) => logitsOf(model, ids));
    it.each(Object.entries(wholeBlocks))(
      `%s, ${loadIn8bit ? 'int8' : 'float'}: the same bits as one device`,
      async (_, deviceMap) => {
        const got = await withModel(golden, { devices, deviceMap, loadIn8bit }, (model) => logitsOf(model, ids));
        expect(got).toEqual(await reference);
      },
    );
    it.each(Object.entries(cutBlocks))(
      `%s, ${loadIn8bit ? 'int8' : 'float'}: within 1e-5 standard deviations`,
      async (_, deviceMap) => {
        const got = await withModel(golden, { devices, deviceMap, loadIn8bit }, (model) => logitsOf(model, ids));
        expect(distance(got, await reference)).toBeLessThan(1e-5);
      },
    );
  }

  it.each(['llama', 'mistral'] as const)(
    '%s over two and three devices: the same bits, and the same greedy text',
    async (name) => {
      const other = readGolden(name);
      const rows = rowsOf(other, 'input_ids');
      const want = await withModel(other, {}, (model) => logitsOf(model, rows));
      for (const count of [2, 3]) {
        await withModel(other, { devices: devices.slice(0, count), deviceMap: 'balanced' }, async (model) => {
          expect(await logitsOf(model, rows)).toEqual(want);
          expect(await greedyTokens(model, rows[0] as number[], 8)).toEqual(other.greedy.slice(0, 8));
        });
      }
    },
  );

  it('does not depend on the number of threads', async () => {
    const results = [];
    for (const threads of [1, 2, 3])
      results.push(await withModel(golden, { threads, loadIn8bit: true }, (model) => logitsOf(model, ids)));
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });
});
