/**
 * Device names: `cpu`, `cpu:0`…, `cuda:0`…, `disk`, `meta`; plain integers mean `cuda:N`. Names only; opening devices
 * is `backend.ts`.
 */
import { DeviceMapError } from './errors.js';

export type DeviceType = 'cpu' | 'cuda' | 'disk' | 'meta';

/** A canonical device name: `cpu:0`, `cuda:1`, `disk`, `meta`. */
export type DeviceName = string;

export interface Device {
  readonly type: DeviceType;
  readonly index: number;
  readonly name: DeviceName;
}

const PATTERN = /^(cpu|cuda)(?::(\d{1,4}))?$/;

/**
 * Reads a device in any accepted spelling. `cpu` is `cpu:0`, `cuda` is `cuda:0`, `1` is `cuda:1`. Throws
 * DeviceMapError.
 */
export function parseDevice(value: string | number): Device {
  if (typeof value === 'number' || /^\d+$/.test(value)) {
    const index = Number(value);
    if (Number.isInteger(index) && index >= 0 && index < 10_000) return { type: 'cuda', index, name: `cuda:${index}` };
  } else if (value === 'disk' || value === 'meta') {
    return { type: value, index: 0, name: value };
  } else {
    const match = PATTERN.exec(value);
    if (match !== null) {
      const type = match[1] as 'cpu' | 'cuda';
      const index = Number(match[2] ?? 0);
      return { type, index, name: `${type}:${index}` };
    }
  }
  throw new DeviceMapError(`device: expected cpu, cpu:N, cuda:N, disk, meta or an integer, got "${value}"`, {
    hint: 'write cuda:0 for the first GPU, cpu for the processor',
  });
}

export function canonicalDevice(value: string | number): DeviceName {
  return parseDevice(value).name;
}
