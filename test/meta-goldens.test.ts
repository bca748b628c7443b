/**
 * The tiny random models as PyTorch's transformers 5.17 computes them (fixtures: expected.safetensors), run eagerly on
 * the cpu backend.
 */
import '@metashard/cpu';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { loadSafetensors, openCheckpoint, readTensors, type Tensor, tensor } from '@metashard/core';
import { buildModel, eagerContext, replaceLinear } from '@metashard/meta';
import { describe, expect, it } from 'vitest';

const int32 = (values: number[]): Tensor => tensor(values, { dtype: 'int32' });

/** Largest difference in standard deviations of the expected values. */
function worst(got: Tensor, want: Tensor): number {
  const [a, b] = [got.toFloat32Array(), want.toFloat32Array()];
  expect(a.length).toBe(b.length);
  const mean = b.reduce((sum, value) => sum + value, 0) / b.length;
  const deviation = Math.sqrt(b.reduce((sum, value) => sum + (value - mean) ** 2, 0) / b.length);
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - (b[i] as number))), 0) / deviation;
}

function relativeError(got: Tensor, want: Tensor): number {
  const [a, b] = [got.toFloat32Array(), want.toFloat32Array()];
  return Math.hypot(...a.map((value, i) => value - (b[i] as number))) / Math.hypot(...b);
}

describe.each(['bloom', 'llama', 'mistral', 'opt', 'gpt2'])('%s', async (name) => {
  const folder = fileURLToPath(new URL(`./fixtures/models/${name}/`, import.meta.url));
  const raw = JSON.parse(readFileSync(`${folder}config.json`, 'utf8'));
  const index = await openCheckpoint(folder);
  const state = await readTensors(index, index.tensors.keys());
  const expected = await loadSafetensors(`${folder}expected.safetensors`);
  const of = (key: string): Tensor => expected.get(key) as Tensor;
  const rowsOf = (key: string): number[][] => of(key).toArray() as number[][];

  const load = (int8 = false) => {
    const { model } = buildModel(raw);
    if (int8) replaceLinear(model);
    model.loadStateDict(state);
    return model.to('cpu');
  };
  const forward = (model: ReturnType<typeof load>, sequences: number[][]) => {
    const context = eagerContext(
      model,
      sequences.map((ids) => ids.length),
    );
    const ids = sequences.flat();
    const logits = model.forward({ inputIds: int32(ids), outputRows: int32(ids.map((_, row) => row)) }, context);
    return { logits, taps: context.taps };
  };

  it('float32 logits and hidden states within 1e-4 standard deviations', () => {
    const { logits, taps } = forward(load(), rowsOf('input_ids'));
    const errors = [worst(logits, of('logits'))];
    for (const [tap, value] of taps) errors.push(worst(value, of(tap.replace('hidden_states.', 'hidden_'))));
    expect(taps.size).toBe(4);
    console.log(`${name}: worst difference ${Math.max(...errors).toExponential(1)} standard deviations`);
    expect(Math.max(...errors)).toBeLessThan(1e-4);
  });

  it('the last logits of left-padded rows, pads left out', () => {
    const masks = rowsOf('attention_mask');
    const sequences = rowsOf('padded_input_ids').map((ids, row) => ids.filter((_, i) => masks[row]?.[i] === 1));
    const { logits } = forward(load(), sequences);
    const rows = logits.toArray() as number[][];
    let end = 0;
    const last = sequences.map((ids) => {
      end += ids.length;
      return rows[end - 1] as number[];
    });
    expect(worst(tensor(last), of('padded_logits_last'))).toBeLessThan(1e-4);
  });

  it('greedy tokens', () => {
    const model = load();
    const wanted = JSON.parse(readFileSync(`${folder}expected.json`, 'utf8')).greedy as number[];
    const ids = [...(rowsOf('input_ids')[0] as number[])];
    const start = ids.length;
    while (ids.length < start + wanted.length) {
      const logits = (forward(model, [ids]).logits.toArray() as number[][]).at(-1) as number[];
      ids.push(logits.indexOf(Math.max(...logits)));
    }
    expect(ids.slice(start)).toEqual(wanted);
  });

  it('LLM.int8() logits within 4e-3 of their norm', () => {
    const error = relativeError(forward(load(true), rowsOf('input_ids')).logits, of('int8_logits'));
    console.log(`${name}: int8 relative error ${error.toExponential(1)}`);
    expect(error).toBeLessThan(4e-3);
  });
});
