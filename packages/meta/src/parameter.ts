/**
 * Parameters: tensors whose identity outlives moves, casts and loads, so that modules can share them. `Int8Params` is
 * in `int8-params.ts`.
 */
import { type DeviceName, type Dim, DTYPES, type DType, F, Tensor, type TensorParts } from '@metashard/core';
import { emptyMode } from './empty-mode.js';
import { metaTensor } from './meta-tensor.js';
import { transposedView } from './transposed-view.js';

export interface ParameterOptions {
  requiresGrad?: boolean;
  /**
   * Float checkpoints hold this matrix the other way round, [in, out] (GPT-2's Conv1D); 8-bit ones hold it as it is.
   */
  storedTransposed?: boolean;
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
  readonly storedTransposed: boolean;

  constructor(data: Tensor, { requiresGrad = true, storedTransposed = false }: ParameterOptions = {}) {
    super(ownParts(data));
    this.requiresGrad = requiresGrad;
    this.storedTransposed = storedTransposed;
  }

  /** Dimensions of the float tensor that a checkpoint holds for this parameter. */
  get storedDims(): readonly Dim[] {
    return this.storedTransposed ? this.dims.toReversed() : this.dims;
  }
  /** What the parameter holds as a checkpoint holds it; shares the elements. */
  get stored(): Tensor {
    return this.storedTransposed && DTYPES[this.dtype].isFloat ? transposedView(this.data) : this.data;
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
   * Takes new float values, of `storedDims`, as `loadStateDict` does: cast to this dtype, moved to this device; a
   * parameter on meta takes the value's device.
   */
  load(value: Tensor): void {
    const device = this.isMeta ? value.device : this.device;
    this.data = F.to(this.fromStored(value), { device, dtype: this.dtype });
  }
  protected fromStored(value: Tensor): Tensor {
    return this.storedTransposed ? F.contiguous(transposedView(value)) : value;
  }

  /** The tensors an executor must have loaded to run what uses this parameter, by checkpoint name. */
  weightTensors(name: string): [string, Tensor][] {
    return [[name, this]];
  }
}
