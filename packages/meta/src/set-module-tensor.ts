/**
 * Placing one tensor of a module: what loaders do tensor by tensor, as accelerate's set_module_tensor_to_device, but
 * never casting integers to floats and never by way of another device.
 */
import {
  ArgumentError,
  CheckpointError,
  type DeviceName,
  DTYPES,
  type DType,
  F,
  formatDims,
  type NestedArray,
  nearestWord,
  parseDevice,
  StateError,
  sameDims,
  Tensor,
  tensor,
} from '@metashard/core';
import { Int8Params, int8WithoutScales } from './int8-params.js';
import { type Module, splitPath } from './module.js';
import { Parameter } from './parameter.js';

export interface SetModuleTensorOptions {
  /** New values; needed when the tensor is on meta. A number array is made a tensor. */
  value?: Tensor | NestedArray;
  /** Float dtype to store as; default: the tensor's own. Integers are never cast. */
  dtype?: DType;
  /** float32 [out] row scales of an int8 `value` for an Int8Params. */
  scb?: Tensor;
}

/**
 * Puts the parameter or buffer `name` on `device`, with new values if given. The parameter object stays, so its class
 * and ties do; an Int8Params is quantized when float values reach a real device, at most once a value. `value` must
 * have the tensor's shape. Throws ArgumentError (no such tensor), StateError (values needed), CheckpointError (shape,
 * integers into floats, int8 without `scb`).
 */
export function setModuleTensorToDevice(
  module: Module,
  name: string,
  device: DeviceName | number,
  { value, dtype, scb }: SetModuleTensorOptions = {},
): void {
  const target = parseDevice(device).name;
  const { owner, leaf, old } = find(module, name);
  const given = value === undefined || value instanceof Tensor ? value : tensor(value);
  if ((given ?? old).isMeta && target !== 'meta') {
    throw new StateError(`${name}: expected values to put on ${target}, got a tensor on meta`, {
      hint: 'pass { value }',
    });
  }
  if (given !== undefined) checkValue(name, old, given);
  if (old instanceof Int8Params && given?.dtype === 'int8') placeInt8(name, old, given, scb, target);
  else if (old instanceof Parameter) placeParameter(old, given, target, dtype);
  else {
    const buffer = placed(given ?? old, target, dtype ?? old.dtype);
    owner.registerBuffer(leaf, buffer, { persistent: owner.isPersistent(leaf) });
  }
}

function checkValue(name: string, old: Tensor, value: Tensor): void {
  const details = { tensor: name };
  if (!sameDims(value.dims, old.dims)) {
    const [wanted, got] = [formatDims(old.dims), formatDims(value.dims)];
    throw new CheckpointError(`${name}: expected a value of shape ${wanted}, got ${got}`, { details });
  }
  const float = DTYPES[value.dtype].isFloat;
  const fits = old instanceof Int8Params ? float || value.dtype === 'int8' : float === DTYPES[old.dtype].isFloat;
  if (!fits) throw new CheckpointError(`${name}: expected ${old.dtype}, got a value of ${value.dtype}`, { details });
}

function placed(source: Tensor, device: DeviceName, dtype: DType): Tensor {
  return F.to(source, DTYPES[source.dtype].isFloat ? { device, dtype } : { device });
}

function placeParameter(
  parameter: Parameter,
  value: Tensor | undefined,
  device: DeviceName,
  dtype: DType | undefined,
): void {
  if (value !== undefined) {
    const stored = dtype ?? (DTYPES[parameter.dtype].isFloat ? parameter.dtype : value.dtype);
    parameter.data = F.to(value, { dtype: stored });
  }
  parameter.moveTo(dtype === undefined ? { device } : { device, dtype });
}

function placeInt8(name: string, weight: Int8Params, value: Tensor, scb: Tensor | undefined, device: DeviceName): void {
  if (scb === undefined) throw int8WithoutScales(name);
  weight.loadInt8(value, scb);
  weight.moveTo({ device });
}

function find(module: Module, name: string): { owner: Module; leaf: string; old: Tensor } {
  const [path, leaf] = splitPath(name);
  const owner = module.getModule(path);
  const old = new Map([...owner.ownParameters(), ...owner.ownBuffers()]).get(leaf);
  if (old !== undefined) return { owner, leaf, old };
  const names = [...module.namedParameters({ everyName: true }), ...module.namedBuffers()].map(([known]) => known);
  const near = nearestWord(name, names);
  throw new ArgumentError(`setModuleTensorToDevice: expected a parameter or buffer of the module, got "${name}"`, {
    hint: near === undefined ? undefined : `did you mean ${near}?`,
  });
}
