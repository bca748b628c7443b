/** nn.Linear: x · weightᵀ + bias. The 8-bit one is `linear-8bit-lt.ts`. */
import { F, type Tensor } from '@metashard/core';
import { Module } from '../module.js';
import type { Parameter } from '../parameter.js';
import { type FactoryOptions, newParameter, uniform } from './init.js';
import { onRows } from './rows.js';

export interface LinearOptions extends FactoryOptions {
  /** Default true. */
  bias?: boolean;
}

export class Linear extends Module {
  weight: Parameter;
  bias: Parameter | null;

  /** weight [out, in] and bias [out], uniform in ±1/√in. */
  constructor(
    readonly inFeatures: number,
    readonly outFeatures: number,
    options: LinearOptions = {},
  ) {
    super();
    const fill = uniform(1 / Math.sqrt(inFeatures));
    this.weight = newParameter([outFeatures, inFeatures], options, fill);
    this.bias = options.bias === false ? null : newParameter([outFeatures], options, fill);
  }

  /** x [..., in] → [..., out], in x's dtype. */
  forward(x: Tensor): Tensor {
    return onRows('Linear', x, this.inFeatures, (rows) => F.linear(rows, this.weight, this.bias));
  }
}
