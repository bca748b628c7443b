/**
 * Every step of the int8 linears of three models' first blocks, from the stored inputs (computed in float64 from
 * float32 weights and activations): the reference maths, and the cpu's quantization of the same weights.
 */
import { fileURLToPath } from 'node:url';
import {
  F,
  int8LinearMatmul,
  int8WeightQuant,
  llmInt8Linear,
  loadSafetensors,
  openCheckpoint,
  readTensors,
  type Tensor,
  tensor,
} from '@metashard/core';
import '@metashard/cpu';
import { describe, expect, it } from 'vitest';
import { expectNativeSteps } from './native-int8-steps.js';

it.each(['bloom', 'llama', 'gpt2'])('the native ops of the cpu take the same steps: %s', async (model) => {
  expect(await expectNativeSteps(model, 'cpu:0')).toBeGreaterThan(3);
});

/**
 * Indices where int8 values by row differ and should not: a rounding may go either way where the exact quotient value ·
 * 127 / scale lies within 1e-4 of a half.
 */
function wrongRoundings(got: Tensor, expected: Tensor, values: Tensor, scales: Tensor): number[] {
  const [a, b] = [got.toInt8Array(), expected.toInt8Array()];
  const [v, s] = [values.toFloat32Array(), scales.toFloat32Array()];
  const columns = values.shape.at(-1) as number;
  return [...a.keys()].filter((i) => {
    const quotient = Math.abs(((v[i] as number) * 127) / (s[Math.floor(i / columns)] as number));
    const free = Math.abs((quotient % 1) - 0.5) <= 1e-4;
    return Math.abs((a[i] as number) - (b[i] as number)) > (free ? 1 : 0);
  });
}

/** Conv1D's weights as a Linear holds them. */
function transposed(weight: Tensor): Tensor {
  const [rows, columns] = weight.shape as [number, number];
  const values = weight.toFloat32Array();
  const turned = values.map((_, i) => values[(i % rows) * columns + Math.floor(i / rows)] as number);
  return tensor(turned, { shape: [columns, rows] });
}

const norm = (values: Float32Array): number => Math.hypot(...values);

describe.each(['bloom', 'llama', 'gpt2'])('every int8 linear of the first block of %s', async (model) => {
  const folder = fileURLToPath(new URL(`./fixtures/models/${model}/`, import.meta.url));
  const steps = await loadSafetensors(`${folder}int8_steps.safetensors`);
  const index = await openCheckpoint(folder);
  const linears = [...steps.keys()].filter((name) => name.endsWith('.x')).map((name) => name.slice(0, -2));
  const step = (name: string, key: string): Tensor => steps.get(`${name}.${key}`) as Tensor;
  const parameters = async (name: string): Promise<Map<string, Tensor>> => {
    const keys = ['weight', 'bias'].map((key) => `${name}.${key}`).filter((key) => index.tensors.has(key));
    const read = await readTensors(index, keys);
    const weight = read.get(`${name}.weight`) as Tensor;
    return model === 'gpt2' ? read.set(`${name}.weight`, transposed(weight)) : read;
  };

  it.each(linears)('%s: CB and SCB from the weight, as the cpu quantizes it', async (name) => {
    const weight = (await parameters(name)).get(`${name}.weight`) as Tensor;
    const { CB, SCB } = int8WeightQuant(weight);
    expect(SCB.toArray()).toEqual(step(name, 'SCB').toArray());
    expect(wrongRoundings(CB, step(name, 'CB'), weight, SCB)).toEqual([]);
    const native = F.quantizeWeight(weight);
    expect([native.CB.toArray(), native.SCB.toArray()]).toEqual([CB.toArray(), SCB.toArray()]);
  });

  it.each(linears)('%s: CA, SCA, outliers, accumulators and the output', async (name) => {
    const bias = (await parameters(name)).get(`${name}.bias`);
    const [x, CB, SCB] = [step(name, 'x'), step(name, 'CB'), step(name, 'SCB')];
    const { out, CA, SCA, outlierCols, accumulators } = llmInt8Linear(x, CB, SCB, { threshold: 6, bias });
    expect(SCA.toArray()).toEqual(step(name, 'SCA').toArray());
    expect(outlierCols?.toArray()).toEqual(step(name, 'outlier_columns').toArray());
    expect(wrongRoundings(CA, step(name, 'CA'), x, SCA)).toEqual([]);
    expect(int8LinearMatmul(step(name, 'CA'), CB).toArray()).toEqual(step(name, 'accumulators').toArray());
    expect(int8LinearMatmul(CA, CB).toArray()).toEqual(accumulators.toArray());
    const [y, want] = [out.toFloat32Array(), step(name, 'out').toFloat32Array()];
    expect(norm(y.map((value, i) => value - (want[i] as number))) / norm(want)).toBeLessThan(1e-6);
  });
});
