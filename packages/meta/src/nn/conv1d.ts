/**
 * nn.Conv1D: GPT-2's linear layer (transformers' Conv1D). It computes as a Linear and holds its weight as one; only
 * float checkpoints hold the weight the other way round, [in, out].
 */
import { Parameter } from '../parameter.js';
import type { FactoryOptions } from './init.js';
import { Linear } from './linear.js';

export class Conv1D extends Linear {
  /** weight [out, in] and bias [out], uniform in ±1/√in. */
  constructor(inFeatures: number, outFeatures: number, factory: FactoryOptions = {}) {
    super(inFeatures, outFeatures, factory);
    this.weight = new Parameter(this.weight.data, { storedTransposed: true });
  }
}
