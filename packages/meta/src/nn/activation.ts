/** Activations as modules; any shape. */
import { type ActivationKind, F, type Tensor } from '@metashard/core';
import { Module } from '../module.js';

/** One of the `activation` op's kinds. */
export class Activation extends Module {
  constructor(readonly kind: ActivationKind) {
    super();
  }
  forward(x: Tensor): Tensor {
    return F.activation(x, this.kind);
  }
}

export class ReLU extends Activation {
  constructor() {
    super('relu');
  }
}
export class GELU extends Activation {
  /** `none` is erf-exact, `tanh` the approximation of Hendrycks & Gimpel 2016. */
  constructor({ approximate = 'none' }: { approximate?: 'none' | 'tanh' } = {}) {
    super(approximate === 'tanh' ? 'gelu_tanh' : 'gelu');
  }
}
export class SiLU extends Activation {
  constructor() {
    super('silu');
  }
}
export class Tanh extends Activation {
  constructor() {
    super('tanh');
  }
}
