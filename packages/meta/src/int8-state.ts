/**
 * State dicts of modules whose weight is an Int8Params, as bitsandbytes writes them: `weight` in rows, `SCB` beside it,
 * and `weight_format` (0: rows). Shared by Linear8bitLt and an Embedding tied to an int8 head.
 */
import { DTYPES, empty, Tensor, tensor } from '@metashard/core';
import { Int8Params, int8WithoutScales } from './int8-params.js';
import type { Parameter } from './parameter.js';
import type { LoadPlan } from './state-dict.js';
import { weightFormatProblem } from './weight-format.js';

/** What stands beside `weight` once it is quantized; nothing before. */
export function int8State({ SCB }: Int8Params): [string, Tensor][] {
  if (SCB === null) return [];
  const format = SCB.isMeta
    ? empty([], { dtype: 'uint8', device: 'meta' })
    : tensor([0], { dtype: 'uint8', device: SCB.device, shape: [] });
  return [
    ['SCB', SCB],
    ['weight_format', format],
  ];
}

/**
 * Plans loading `<prefix>weight`, which the source has: float weights, or int8 ones with their SCB; before or after a
 * move or a forward.
 */
export function planInt8Weight(prefix: string, parameter: Parameter, plan: LoadPlan): void {
  const key = `${prefix}weight`;
  const weight = plan.source.get(key);
  const format = plan.take(`${prefix}weight_format`);
  const SCB = plan.take(`${prefix}SCB`);
  const problem = format === undefined ? null : weightFormatProblem(format);
  if (problem !== null) plan.problem(`${prefix}weight_format: ${problem}`);
  const isInt8 = weight instanceof Tensor && !DTYPES[weight.dtype].isFloat;
  if (SCB === undefined) {
    if (isInt8) plan.problem(int8WithoutScales(key).message);
    else plan.takeTensor(key, parameter, (value) => parameter.load(value), 'float32');
  } else if (!(SCB instanceof Tensor) || !isInt8) plan.problem(`${prefix}SCB: expected an int8 weight beside it`);
  else planInt8(prefix, parameter, weight, SCB, plan);
}

function planInt8(prefix: string, parameter: Parameter, CB: Tensor, SCB: Tensor, plan: LoadPlan): void {
  plan.take(`${prefix}weight`);
  if (!(parameter instanceof Int8Params) || parameter.hasFp16Weights) {
    const got = parameter instanceof Int8Params ? 'hasFp16Weights: true' : 'a plain Parameter';
    plan.problem(`${prefix}weight: expected Int8Params with hasFp16Weights: false for an 8-bit checkpoint, got ${got}`);
    return;
  }
  const problem = parameter.int8Problem(CB, SCB);
  if (problem === null) plan.found(parameter, () => parameter.loadInt8(CB, SCB));
  else plan.problem(`${prefix}weight: ${problem.message}`);
}
