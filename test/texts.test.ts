/**
 * Real story models: greedy continuations as transformers computes them, in float and int8; the checkpoint that
 * transformers saved in 8 bits.
 */
import { readFileSync } from 'node:fs';
import { type LoadModelOptions, loadModel } from 'metashard';
import { describe, expect, it } from 'vitest';
import { MODELS, relativeError, SHIPPED, standardDeviation } from './golden-models.js';

interface Continuation {
  prompt: string;
  prompt_ids: number[];
  new_ids: number[];
}

const texts = JSON.parse(readFileSync(new URL('./fixtures/texts.json', import.meta.url), 'utf8')) as {
  models: Record<string, Continuation[]>;
};
const FOLDERS: Record<string, string> = {
  stories260K: `${SHIPPED}stories260K`,
  'bloom-stories': `${SHIPPED}bloom-stories`,
  babyllama105: `${MODELS}babyllama105`,
};

/**
 * Tokens that agree before the first step whose two best logits are closer than `margin` standard deviations (where
 * either may be chosen). Returns the first disagreement before that, or null.
 */
async function firstDisagreement(
  folder: string,
  options: LoadModelOptions,
  wanted: Continuation,
  margin: number,
): Promise<number | null> {
  const model = await loadModel(folder, { devices: ['cpu'], maxSeqLen: 256, ...options });
  try {
    let step = 0;
    const pieces = model.generate(wanted.prompt_ids, {
      maxNewTokens: wanted.new_ids.length,
      doSample: false,
      ignoreEos: true,
      outputLogits: true,
    });
    for await (const { tokenIds, logits } of pieces) {
      const sorted = Float32Array.from(logits as Float32Array).sort();
      const gap = (sorted.at(-1) as number) - (sorted.at(-2) as number);
      if (tokenIds[0] !== wanted.new_ids[step]) return gap < margin * standardDeviation(sorted) ? null : step;
      step++;
    }
    return null;
  } finally {
    await model.dispose();
  }
}

describe.each(Object.entries(FOLDERS))('%s', (name, folder) => {
  const continuations = texts.models[name] as Continuation[];

  it('encodes the prompts as the reference did', async () => {
    const model = await loadModel(folder, { devices: ['cpu'], maxSeqLen: 64 });
    for (const { prompt, prompt_ids } of continuations) expect(model.tokenizer?.encode(prompt)).toEqual(prompt_ids);
    await model.dispose();
  });
  it('continues in float32 as transformers does, token for token where the margin allows', async () => {
    for (const wanted of continuations)
      expect(await firstDisagreement(folder, { dtype: 'float32' }, wanted, 1e-3), wanted.prompt).toBeNull();
  });
  it('tells the same story in int8 over two devices as far as the quantization error allows', async () => {
    const options = { loadIn8bit: true, devices: ['cpu:0', 'cpu:1'], deviceMap: 'balanced' } as const;
    for (const wanted of continuations)
      expect(await firstDisagreement(folder, options, wanted, 0.05), wanted.prompt).toBeNull();
  });
});

describe('stories260K saved in 8 bits by transformers', () => {
  const folder = `${MODELS}stories260K-bnb8`;
  interface Expected {
    memory_footprint: number;
    prompts: { ids: number[]; float32: { last_logits: number[]; argmax: number; greedy: number[]; loss: number } }[];
  }
  const expected = JSON.parse(readFileSync(`${folder}/expected.json`, 'utf8')) as Expected;

  it('loads as it is and agrees with transformers and bitsandbytes', async () => {
    const model = await loadModel(folder, { devices: ['cpu'], maxSeqLen: 64 });
    for (const { ids, float32 } of expected.prompts) {
      const logits = (await model.forward({ inputIds: [ids] })).logits.toFloat32Array().slice(-model.config.vocabSize);
      expect(logits.indexOf(Math.max(...logits))).toBe(float32.argmax);
      expect(relativeError(logits.slice(0, float32.last_logits.length), float32.last_logits)).toBeLessThan(4e-2);
      const { loss } = await model.loss([...ids, ...float32.greedy]);
      expect(Math.abs(loss - float32.loss)).toBeLessThan(0.02);
      const wanted = { prompt: '', prompt_ids: ids, new_ids: float32.greedy };
      expect(await firstDisagreement(folder, {}, wanted, 0.05)).toBeNull();
    }
    await model.dispose();
  });

  it('dequantizes when asked for float', async () => {
    const [int8, float] = [
      await loadModel(folder, { devices: ['cpu'], maxSeqLen: 64 }),
      await loadModel(folder, { devices: ['cpu'], maxSeqLen: 64, loadIn8bit: false }),
    ];
    const ids = expected.prompts[0]?.ids as number[];
    const [a, b] = await Promise.all(
      [int8, float].map(async (model) => (await model.forward({ inputIds: [ids] })).logits.toFloat32Array()),
    );
    expect(relativeError(a as Float32Array, b as Float32Array)).toBeLessThan(3e-2);
    expect(float.memoryFootprint()).toBeGreaterThan(2 * int8.memoryFootprint());
    await int8.dispose();
    await float.dispose();
  });
});
