/** Whether a device map gives every tensor of a model a device. */
import { DeviceMapError } from '@metashard/core';
import { graphOf, isWithin, type Model, stateNames, walk } from './graph.js';
import type { DeviceKey } from './max-memory.js';
import { type PlannerLogger, tell } from './planner-logger.js';

export interface CheckDeviceMapOptions {
  deviceMap: Readonly<Record<string, DeviceKey | string>>;
  /** Is told of keys that name no part of the model. */
  logger?: PlannerLogger | undefined;
}

/**
 * `"ok"` when every parameter and persistent buffer lies under a key (`""` covers all). Keys that name neither a
 * module nor a tensor are told to `logger.warn`. Throws DeviceMapError with the tensors that no key covers
 * (`details.uncovered`).
 */
export function checkDeviceMap(model: Model, { deviceMap, logger }: CheckDeviceMapOptions): 'ok' {
  const keys = Object.keys(deviceMap);
  const known = partPaths(model);
  const unknown = keys.filter((key) => !known.has(key));
  if (unknown.length > 0) {
    const message = `check_device_map: expected names of the model's modules, got ${unknown.join(', ')}`;
    tell(logger, 'warn', 'unknown_keys', message, { keys: unknown });
  }
  const uncovered = stateNames(model).filter((name) => !keys.some((key) => isWithin(name, key)));
  if (uncovered.length === 0) return 'ok';
  throw new DeviceMapError(`device_map: expected a device for every parameter, got none for ${uncovered.join(', ')}`, {
    hint: 'add their modules, or "" for everything left',
    details: { uncovered },
  });
}

function partPaths(model: Model): Set<string> {
  const paths = [...walk(graphOf(model))].flatMap(({ path, parameters, buffers }) => [
    path,
    ...[...parameters, ...buffers].map((tensor) => tensor.path),
  ]);
  return new Set([...paths, ...stateNames(model)]);
}
