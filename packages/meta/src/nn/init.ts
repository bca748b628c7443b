/**
 * Values of new parameters, as PyTorch's layers draw them but from one seeded generator: the same program makes the
 * same weights.
 */
import { type DeviceName, type DType, elementCount, parseDevice, tensor, uniformGenerator } from '@metashard/core';
import { emptyMode } from '../empty-mode.js';
import { metaTensor } from '../meta-tensor.js';
import { Parameter } from '../parameter.js';

export interface FactoryOptions {
  /** Of the new parameters; default float32. */
  dtype?: DType;
  /** Of the new parameters; default cpu. On meta, or while `initEmptyWeights` runs, nothing is allocated. */
  device?: DeviceName;
}

/** Fills a new parameter of `values.length` elements. */
export type Initializer = (values: Float32Array) => void;

let next = uniformGenerator(0);

/** Restarts the generator that new parameters draw from. */
export function manualSeed(seed: number): void {
  next = uniformGenerator(seed);
}

/** Uniform in [-bound, bound). */
export function uniform(bound: number): Initializer {
  return (values) => {
    for (let i = 0; i < values.length; i++) values[i] = (2 * next() - 1) * bound;
  };
}
export const constant =
  (value: number): Initializer =>
  (values) =>
    values.fill(value);

/** Standard normal (Box–Muller). */
export const normal: Initializer = (values) => {
  for (let i = 0; i < values.length; i++) {
    values[i] = Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
  }
};

/** A parameter of this shape: filled on a real device, without storage on meta. */
export function newParameter(
  shape: readonly number[],
  { dtype = 'float32', device = 'cpu' }: FactoryOptions,
  fill: Initializer,
): Parameter {
  if (emptyMode() !== null || parseDevice(device).type === 'meta') {
    return new Parameter(metaTensor(shape, dtype));
  }
  const values = new Float32Array(elementCount(shape));
  fill(values);
  return new Parameter(tensor(values, { dtype, device, shape }));
}
