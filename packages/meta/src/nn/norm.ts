/** nn.LayerNorm (Ba et al. 2016) and nn.RMSNorm (Zhang & Sennrich 2019) over the last dimension. */
import { F, type Tensor } from '@metashard/core';
import { Module } from '../module.js';
import type { Parameter } from '../parameter.js';
import { constant, type FactoryOptions, newParameter } from './init.js';
import { onRows } from './rows.js';

export interface LayerNormOptions extends FactoryOptions {
  eps?: number;
  bias?: boolean;
}

export class LayerNorm extends Module {
  readonly eps: number;
  weight: Parameter;
  bias: Parameter | null;

  /** weight [features] of ones, bias [features] of zeros; eps 1e-5. */
  constructor(
    readonly features: number,
    { eps = 1e-5, bias = true, ...factory }: LayerNormOptions = {},
  ) {
    super();
    this.eps = eps;
    this.weight = newParameter([features], factory, constant(1));
    this.bias = bias ? newParameter([features], factory, constant(0)) : null;
  }

  forward(x: Tensor): Tensor {
    return onRows('LayerNorm', x, this.features, (rows) => F.layerNorm(rows, this.weight, this.bias, this.eps));
  }
}

export interface RMSNormOptions extends FactoryOptions {
  eps?: number;
}

export class RMSNorm extends Module {
  readonly eps: number;
  weight: Parameter;

  /** weight [features] of ones; eps 1e-6. */
  constructor(
    readonly features: number,
    { eps = 1e-6, ...factory }: RMSNormOptions = {},
  ) {
    super();
    this.eps = eps;
    this.weight = newParameter([features], factory, constant(1));
  }

  forward(x: Tensor): Tensor {
    return onRows('RMSNorm', x, this.features, (rows) => F.rmsNorm(rows, this.weight, this.eps));
  }
}
