/**
 * nn.Embedding: a table of vectors looked up by id; in 8 bits where it is tied to an int8 output head
 * (`replaceLinear`).
 */
import { elementCount, F, type Tensor } from '@metashard/core';
import { Int8Params } from '../int8-params.js';
import { int8State, planInt8Weight } from '../int8-state.js';
import { Module } from '../module.js';
import type { Parameter } from '../parameter.js';
import type { LoadPlan } from '../state-dict.js';
import { type FactoryOptions, newParameter, normal } from './init.js';

export class Embedding extends Module {
  weight: Parameter;

  /** weight [numEmbeddings, embeddingDim], standard normal. */
  constructor(
    readonly numEmbeddings: number,
    readonly embeddingDim: number,
    factory: FactoryOptions = {},
  ) {
    super();
    this.weight = newParameter([numEmbeddings, embeddingDim], factory, normal);
  }

  /** ids (int32) [...] → [..., embeddingDim], float32. */
  forward(ids: Tensor): Tensor {
    if (ids.dims.length === 1) return this.#lookUp(ids);
    const shape = ids.shape;
    const flat = this.#lookUp(ids.contiguous().reshape([elementCount(shape)]));
    return flat.reshape([...shape, this.embeddingDim]);
  }

  #lookUp(ids: Tensor): Tensor {
    if (!(this.weight instanceof Int8Params)) return F.embedding(ids, this.weight);
    const { CB, SCB } = this.weight.forForward(ids.isMeta);
    return F.int8Embedding(ids, CB, SCB);
  }

  /** `weight`, and of an int8 table `SCB` and `weight_format`. */
  override ownState(): [string, Tensor][] {
    return this.weight instanceof Int8Params ? [...super.ownState(), ...int8State(this.weight)] : super.ownState();
  }

  protected override planParameter(prefix: string, name: string, parameter: Parameter, plan: LoadPlan): void {
    const isInt8 = parameter instanceof Int8Params && plan.source.has(`${prefix}${name}`);
    if (isInt8) planInt8Weight(prefix, parameter, plan);
    else super.planParameter(prefix, name, parameter, plan);
  }
}
