/**
 * The stored int8 steps of a golden model's first block, computed by the native ops of one device: integers equal,
 * outputs within 1e-6 of their norm. Not a test itself.
 */
import { fileURLToPath } from 'node:url';
import { callOp, F, loadSafetensors, type Tensor } from '@metashard/core';
import { expect } from 'vitest';

/**
 * Runs every linear whose input is stored; biases are left to the model tests, so outputs are compared without them
 * where a step has one.
 */
export async function expectNativeSteps(model: string, device: string): Promise<number> {
  const folder = fileURLToPath(new URL(`./fixtures/models/${model}/`, import.meta.url));
  const steps = await loadSafetensors(`${folder}int8_steps.safetensors`);
  const linears = [...steps.keys()].filter((name) => name.endsWith('.x')).map((name) => name.slice(0, -2));
  for (const name of linears) {
    const on = (key: string): Tensor => (steps.get(`${name}.${key}`) as Tensor).to(device);
    const [x, CB, SCB] = [on('x'), on('CB'), on('SCB')];
    const [CA, SCA, columns] = callOp('int8_quantize', [x], [6, 0]) as [Tensor, Tensor, Tensor];
    const back = (tensor: Tensor): Tensor => tensor.to('cpu');
    expect(back(SCA).toArray(), name).toEqual(on('SCA').to('cpu').toArray());
    const found = back(columns).toInt32Array();
    expect([...found.subarray(1, 1 + (found[0] as number))], name).toEqual(on('outlier_columns').to('cpu').toArray());
    const roundings = countDifferences(back(CA).toInt8Array(), on('CA').to('cpu').toInt8Array());
    expect(roundings, name).toBeLessThanOrEqual(1);
    const accumulators = callOp('int8_matmul', [on('CA'), CB])[0] as Tensor;
    expect(back(accumulators).toInt32Array(), name).toEqual(on('accumulators').to('cpu').toInt32Array());
    const onCpu = F.int8Linear(back(x), back(CB), back(SCB), null, {
      threshold: 6,
      outliers: 'per-batch',
    }).toFloat32Array();
    const here = back(F.int8Linear(x, CB, SCB, null, { threshold: 6, outliers: 'per-batch' })).toFloat32Array();
    const difference = Math.hypot(...here.map((value, i) => value - (onCpu[i] as number))) / Math.hypot(...onCpu);
    expect(difference, name).toBeLessThan(1e-6);
  }
  return linears.length;
}

/** Values that differ; each by one rounding at most. */
function countDifferences(got: Int8Array, want: Int8Array): number {
  let count = 0;
  for (const [i, value] of want.entries()) {
    const by = Math.abs((got[i] as number) - value);
    if (by > 1) return Number.POSITIVE_INFINITY;
    count += by;
  }
  return count;
}
