/** What each device has been given while a map is made, and why devices were left. Knows bytes, no modules. */
import { type Budgets, type DeviceKey, isGpu } from './max-memory.js';

export interface DeviceAccount {
  readonly device: DeviceKey;
  /** Infinity for disk, which takes what nothing else does. */
  readonly budgetBytes: number;
  /** Executes the layers that are offloaded, so that it keeps room for the largest. */
  readonly executesOffloaded: boolean;
  usedBytes: number;
  bufferBytes: number;
  /** The reserve it kept when the planner went on. */
  reservedBytes: number;
  /** Nothing more goes here. */
  closed: boolean;
  /** What the first part that it refused while empty would have needed; undefined when it refused none. */
  requiredBytes: number | undefined;
}

/**
 * The devices in the order in which they are filled, disk always last. The first GPU and the CPU, or the CPU alone,
 * execute what is offloaded.
 */
export function openAccounts(budgets: Budgets): DeviceAccount[] {
  const devices: DeviceKey[] = [...budgets.keys()];
  if (!budgets.has('disk')) devices.push('disk');
  const firstGpu = devices.find(isGpu);
  return devices.map((device) => ({
    device,
    budgetBytes: device === 'disk' ? Number.POSITIVE_INFINITY : (budgets.get(device) as number),
    executesOffloaded: device === firstGpu || device === 'cpu',
    usedBytes: 0,
    bufferBytes: 0,
    reservedBytes: 0,
    closed: false,
    requiredBytes: undefined,
  }));
}

/** Devices that a part was too large for and that got nothing at all. */
export function leftEmpty(accounts: readonly DeviceAccount[]): DeviceAccount[] {
  return accounts.filter((account) => account.usedBytes === 0 && account.requiredBytes !== undefined);
}

/** Bytes of the buffers outside the GPUs when there are GPUs and none has that much left; else 0. */
export function homelessBufferBytes(accounts: readonly DeviceAccount[]): number {
  const gpus = accounts.filter(({ device }) => isGpu(device));
  const bytes = accounts.filter(({ device }) => !isGpu(device)).reduce((sum, account) => sum + account.bufferBytes, 0);
  const fits = gpus.some((gpu) => gpu.budgetBytes >= bytes + gpu.usedBytes + gpu.reservedBytes);
  return gpus.length === 0 || fits ? 0 : bytes;
}
