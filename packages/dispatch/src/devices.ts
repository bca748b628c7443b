/**
 * The devices a plan may use and what each offers: the given list, or every CUDA device and then the CPU. Budgets are
 * bytes.
 */
import {
  ConfigError,
  canonicalDevice,
  type DeviceName,
  DeviceUnavailableError,
  deviceCount,
  deviceInfo,
  NotCompiledError,
  parseBytes,
  parseDevice,
} from '@metashard/core';

export interface DeviceBudget {
  name: DeviceName;
  emulated: boolean;
  budgetBytes: number;
  reserveBytes: number;
}

export interface DeviceRequest {
  devices?: readonly (string | number)[] | undefined;
  maxMemory?: Record<string, string | number> | undefined;
  reserve?: string | number | undefined;
}

/** What of a device's free memory is offered when no max_memory names it. */
const OFFERED_SHARE = 0.9;

/** CUDA devices of this machine, or why there are none. */
export function cudaDevices(): { names: DeviceName[]; reason?: string } {
  try {
    const count = deviceCount('cuda');
    return { names: Array.from({ length: count }, (_, i) => `cuda:${i}`) };
  } catch (error) {
    if (error instanceof DeviceUnavailableError || error instanceof NotCompiledError)
      return { names: [], reason: error.message };
    throw error;
  }
}

/**
 * Devices with budgets. A CPU device without max_memory shares 0.9 of the memory available with the other CPU devices.
 * A CUDA device that this machine lacks may be planned for when max_memory gives its size. Throws ConfigError,
 * DeviceUnavailableError.
 */
export function resolveDevices({ devices, maxMemory = {}, reserve = 0 }: DeviceRequest): DeviceBudget[] {
  const limits = new Map(
    Object.entries(maxMemory).map(([name, size]) => [canonicalDevice(name), parseBytes(size, `max_memory.${name}`)]),
  );
  const names = devices === undefined ? [...cudaDevices().names, 'cpu:0', 'disk'] : devices.map(canonicalDevice);
  const repeated = names.find((name, i) => names.indexOf(name) !== i);
  if (repeated !== undefined) throw new ConfigError(`devices: expected each device once, got ${repeated} twice`);
  if (names.length === 0) throw new ConfigError('devices: expected at least one device, got an empty list');
  if (names.every((name) => name === 'disk')) {
    throw new ConfigError('devices: expected a device that computes, got disk alone', {
      hint: 'add cpu: it computes what the disk holds',
    });
  }
  const stray = [...limits.keys()].find((name) => !names.includes(name));
  if (stray !== undefined) {
    throw new ConfigError(`max_memory.${stray}: expected one of the devices ${names.join(', ')}`, {
      hint: `add ${stray} to devices`,
    });
  }
  const reserveBytes = parseBytes(reserve, 'reserve');
  const cpus = names.filter((name) => parseDevice(name).type === 'cpu').length;
  return names.map((name) => {
    const device = parseDevice(name);
    if (device.type === 'meta') throw new ConfigError(`devices: expected devices that hold weights, got ${name}`);
    const limit = limits.get(name);
    if (device.type === 'disk')
      return { name, emulated: false, budgetBytes: limit ?? Number.MAX_SAFE_INTEGER, reserveBytes: 0 };
    if (limit !== undefined && device.type === 'cuda' && !cudaDevices().names.includes(name)) {
      return { name, emulated: false, budgetBytes: limit, reserveBytes };
    }
    const info = deviceInfo(device);
    const offered = Math.floor((info.freeBytes * OFFERED_SHARE) / (device.type === 'cpu' ? cpus : 1));
    return { name, emulated: info.emulated, budgetBytes: limit ?? offered, reserveBytes };
  });
}
