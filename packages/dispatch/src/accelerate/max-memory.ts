/** Device keys and memory budgets in accelerate's terms: GPU numbers, `cpu` and `disk`, bytes. */
import { ConfigError, deviceInfo, parseDevice } from '@metashard/core';
import { cudaDevices } from '../devices.js';
import { convertFileSizeToInt } from './convert-file-size.js';

/** A GPU by its number, `cpu` or `disk`. */
export type DeviceKey = number | 'cpu' | 'disk';

/** Bytes, or sizes such as `30GIB`, by device. */
export type MaxMemory = Readonly<Record<string, number | string>>;

/** Budgets by device in the order in which they are filled: GPUs by number, then cpu, then disk. */
export type Budgets = Map<DeviceKey, number>;

/**
 * Bytes by device: those given, sizes in words converted; or what is free now on every CUDA device of this machine and,
 * as `cpu`, in its memory. Given devices need not be on this machine. Throws ConfigError.
 */
export function getMaxMemory({ maxMemory }: { maxMemory?: MaxMemory | undefined } = {}): Record<string, number> {
  return Object.fromEntries(budgetsOf(maxMemory));
}

export function budgetsOf(maxMemory: MaxMemory | undefined): Budgets {
  if (maxMemory === undefined) return freeMemory();
  const given = Object.entries(maxMemory).map(([name, size]): [DeviceKey, number] => [
    deviceKey(name),
    budgetBytes(name, size),
  ]);
  return new Map(given.sort(([a], [b]) => fillOrder(a) - fillOrder(b)));
}

export function isGpu(device: DeviceKey): device is number {
  return typeof device === 'number';
}

function freeMemory(): Budgets {
  const gpus = cudaDevices().names.map((name): [DeviceKey, number] => {
    const device = parseDevice(name);
    return [device.index, deviceInfo(device).freeBytes];
  });
  return new Map([...gpus, ['cpu', deviceInfo(parseDevice('cpu')).freeBytes]]);
}

function deviceKey(name: string): DeviceKey {
  if (name === 'cpu' || name === 'disk') return name;
  if (/^(0|[1-9]\d*)$/.test(name)) return Number(name);
  const cuda = /^cuda:(\d+)$/.exec(name)?.[1];
  throw new ConfigError(`max_memory: expected GPU numbers, "cpu" and "disk", got "${name}"`, {
    hint: cuda === undefined ? 'number the GPUs from 0' : `accelerate names GPUs by number: write ${cuda}`,
  });
}

/** Numbers need not be whole: balancing scales them. */
function budgetBytes(name: string, size: number | string): number {
  const bytes = typeof size === 'string' ? convertFileSizeToInt({ size }) : size;
  if (bytes >= 0) return bytes;
  throw new ConfigError(`max_memory.${name}: expected bytes, 0 or more, got ${size}`);
}

function fillOrder(device: DeviceKey): number {
  if (device === 'disk') return Number.POSITIVE_INFINITY;
  return device === 'cpu' ? Number.MAX_VALUE : device;
}
