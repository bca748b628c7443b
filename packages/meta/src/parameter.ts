/**
 * Parameters: tensors whose identity outlives moves, casts and loads, so that modules can share them. `Int8Params` is
 * in `int8-params.ts`.
 */
import { type DeviceName, DTYPES, type DType, F, Tensor, type TensorParts } from '@metashard/core';
import { emptyMode } from './empty-mode.js';
import { metaTensor } from './meta-tensor.js';

export interface ParameterOptions {
  requiresGrad?: boolean;
}

/** Where a parameter or module goes: a device, a float dtype, or both. */
export interface MoveTarget {
  device?: DeviceName;
  dtype?: DType;
}

/** The parts of a tensor that is nobody's view. */
function withoutBase({ parts }: Tensor): TensorParts {
  return parts.base === undefined ? parts : { ...parts, base: undefined };
}

/** The parts of `data` as a tensor of its own; on meta while `initEmptyWeights` runs. */
function ownParts(data: Tensor): TensorParts {
  if (emptyMode() !== null && !data.isMeta) return metaTensor(data.dims, data.dtype, data.layout).parts;
  return withoutBase(data);
}

/** A tensor that a module owns and `namedParameters` lists. Two modules that hold the same object share (tie) it. */
export class Parameter extends Tensor {
  requiresGrad: boolean;

  constructor(data: Tensor, { requiresGrad = true }: ParameterOptions = {}) {
    super(ownParts(data));
    this.requiresGrad = requiresGrad;
  }

  /**
   * What the parameter holds, as a plain tensor over the same storage. Setting it replaces values, dtype and device;
   * the shape must stay.
   */
  get data(): Tensor {
    return new Tensor(withoutBase(this));
  }
  set data(value: Tensor) {
    this.replaceParts(withoutBase(value));
  }

  /** Moves and casts in place; integers are never cast. Throws StateError when leaving meta. */
  moveTo({ device, dtype }: MoveTarget): void {
    const cast = dtype !== undefined && DTYPES[this.dtype].isFloat ? { dtype } : {};
    const moved = F.to(this.data, device === undefined ? cast : { device, ...cast });
    this.replaceParts(withoutBase(moved));
  }

  /**
   * Takes new values as `loadStateDict` does: cast to this dtype, moved to this device; a parameter on meta takes the
   * value's device.
   */
  load(value: Tensor): void {
    const device = this.isMeta ? value.device : this.device;
    this.data = F.to(value, { device, dtype: this.dtype });
  }

  /** The tensors an executor must have loaded to run what uses this parameter, by checkpoint name. */
  weightTensors(name: string): [string, Tensor][] {
    return [[name, this]];
  }
}
