/**
 * Parameters: tensors whose identity outlives moves, casts and loads, so that modules can share them. `Int8Params` is in `int8-params.ts`.
 */
import { type DeviceName, type DType, DTYPES, empty, F, type Tensor, Tensor as TensorClass } from '@metashard/core';
import { emptyMode } from './empty-mode.js';

export interface ParameterOptions {
  requiresGrad?: boolean;
}

/** Where a parameter or module goes: a device, a float dtype, or both. */
export interface MoveTarget {
  device?: DeviceName;
  dtype?: DType;
}

/** The parts of `data` as a tensor of its own; on meta while `initEmptyWeights` runs. */
function ownParts(data: Tensor) {
  const { dims, dtype, layout } = data;
  if (emptyMode() !== null && !data.isMeta) return empty(dims, { dtype, layout, device: 'meta' }).parts;
  return { ...data.parts, base: undefined };
}

/** A tensor that a module owns and `namedParameters` lists. Two modules that hold the same object share (tie) it. */
export class Parameter extends TensorClass {
  requiresGrad: boolean;

  constructor(data: Tensor, { requiresGrad = true }: ParameterOptions = {}) {
    super(ownParts(data));
    this.requiresGrad = requiresGrad;
  }

  /** What the parameter holds, as a plain tensor over the same storage. Setting it replaces values, dtype and device; the shape must stay. */
  get data(): Tensor {
    return new TensorClass({ ...this.parts, base: undefined });
  }
  set data(value: Tensor) {
    this.replaceParts({ ...value.parts, base: undefined });
  }

  /** Moves and casts in place; integers are never cast. Throws StateError when leaving meta. */
  moveTo({ device, dtype }: MoveTarget): void {
    const cast = dtype !== undefined && DTYPES[this.dtype].isFloat ? { dtype } : {};
    const moved = F.to(this.data, device === undefined ? cast : { device, ...cast });
    this.replaceParts({ ...moved.parts, base: undefined });
  }

  /** Takes new values as `loadStateDict` does: cast to this dtype, moved to this device; a parameter on meta takes the value's device. */
  load(value: Tensor): void {
    const device = this.isMeta ? value.device : this.device;
    this.data = F.to(value, { device, dtype: this.dtype });
  }

  /** The tensors an executor must have loaded to run what uses this parameter, by checkpoint name. */
  weightTensors(name: string): [string, Tensor][] {
    return [[name, this]];
  }
}
