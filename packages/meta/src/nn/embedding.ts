/** nn.Embedding: a table of vectors looked up by id. */
import { elementCount, F, type Tensor } from '@metashard/core';
import { Module } from '../module.js';
import type { Parameter } from '../parameter.js';
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
    if (ids.dims.length === 1) return F.embedding(ids, this.weight);
    const shape = ids.shape;
    const flat = F.embedding(ids.contiguous().reshape([elementCount(shape)]), this.weight);
    return flat.reshape([...shape, this.embeddingDim]);
  }
}
