/**
 * Small float32 constants that belong to a model and to no checkpoint (inverse frequencies, ALiBi slopes): real tensors
 * on the CPU whose native memory is taken on first use. Building and recording a model therefore needs no native code
 * at all.
 */
import { parseDevice, Tensor, type TensorParts, tensor } from '@metashard/core';

export class ConstantTensor extends Tensor {
  /** The values; to be read, not written. */
  readonly values: Float32Array;

  /** A vector [values.length]. */
  constructor(values: Float32Array) {
    const device = parseDevice('cpu');
    super({
      dims: [values.length],
      dtype: 'float32',
      device,
      layout: 'strided',
      strides: [1],
      offset: 0,
      storage: null,
    });
    this.values = values;
  }

  #materialize(): void {
    if (super.storage === null) this.replaceParts(tensor(this.values).parts);
  }
  override get storage(): TensorParts['storage'] {
    this.#materialize();
    return super.storage;
  }
  override get parts(): TensorParts {
    this.#materialize();
    return super.parts;
  }
  override toBytes(): Uint8Array {
    return new Uint8Array(this.values.slice().buffer);
  }
  override unflatten(axis: number, sizes: readonly number[]): Tensor {
    this.#materialize();
    return super.unflatten(axis, sizes);
  }
  override narrow(axis: number, start: number, length: number): Tensor {
    this.#materialize();
    return super.narrow(axis, start, length);
  }
  override reshape(shape: readonly number[]): Tensor {
    this.#materialize();
    return super.reshape(shape);
  }
}
