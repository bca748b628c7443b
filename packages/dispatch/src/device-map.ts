/**
 * Explicit device maps: module prefix → device, longest prefix wins. Checks a map against a recorded model and gives
 * every op its device.
 */
import { type Device, DeviceMapError, type DeviceName, nearestWord, type Program, parseDevice } from '@metashard/core';
import type { DeviceMap } from './plan.js';
import type { ProgramFacts } from './program-facts.js';

/** Where a module's weights lie, and where it computes. */
export interface Placement {
  device: DeviceName;
  executeOn: DeviceName;
}

/**
 * Canonical names. Weights on `disk` are streamed to `executeOn`, or to `streamer` where the map names none; those on a
 * CPU to a CUDA device that computes them. Throws DeviceMapError.
 */
export function canonicalDeviceMap(map: DeviceMap, streamer: DeviceName | undefined): Record<string, Placement> {
  const canonical: Record<string, Placement> = {};
  for (const [prefix, value] of Object.entries(map)) {
    const plain = typeof value === 'object' ? value.device : value;
    const device = parseDevice(plain);
    const asked = typeof value === 'object' ? value.execute_on : undefined;
    const executeOn =
      asked !== undefined ? parseDevice(asked) : device.type === 'disk' ? streamingDevice(prefix, streamer) : device;
    if (executeOn.type === 'meta' || executeOn.type === 'disk') {
      throw new DeviceMapError(`device_map.${prefix}: expected a device that computes, got ${executeOn.name}`);
    }
    const streams = device.type === 'disk' || (device.type === 'cpu' && executeOn.type === 'cuda');
    if (!streams && executeOn.name !== device.name) {
      throw new DeviceMapError(
        `device_map.${prefix}: weights on ${device.name} computed on ${executeOn.name}: expected disk or a CPU to stream from, and a CUDA device for what a CPU holds`,
        { code: 'offload_unsupported', hint: 'map the module to the device that is to compute it' },
      );
    }
    canonical[prefix] = { device: device.name, executeOn: executeOn.name };
  }
  return canonical;
}

function streamingDevice(prefix: string, streamer: DeviceName | undefined): Device {
  if (streamer !== undefined) return parseDevice(streamer);
  throw new DeviceMapError(
    `device_map.${prefix}: disk: expected a CPU among the devices to compute what is streamed, got none`,
    {
      code: 'offload_unsupported',
      hint: 'add cpu to devices, or name the GPU: { device: disk, execute_on: cuda:0 }',
    },
  );
}

/** The longest key that is the path itself or a prefix of whole components; undefined where none covers it. */
export function longestPrefix(map: Readonly<Record<string, unknown>>, path: string): string | undefined {
  for (let end = path.length; ; end = path.lastIndexOf('.', end - 1)) {
    if (end <= 0) return Object.hasOwn(map, '') ? '' : undefined;
    const prefix = path.slice(0, end);
    if (Object.hasOwn(map, prefix)) return prefix;
  }
}

/**
 * Where each op of the Program runs. Ops without weights that no key covers (residuals of containers) stay with the op
 * before them; `select_rows` goes with what comes after it. A module left out whose weights are all tied to covered
 * ones (an output head) goes where those are. Where nothing is covered, for nothing has weights, all run on `otherwise`.
 * Throws DeviceMapError for keys that name no module and for parameters no key covers.
 */
export function deviceOfOps(
  facts: ProgramFacts,
  map: Readonly<Record<string, DeviceName>>,
  modulePaths: ReadonlySet<string>,
  otherwise: DeviceName,
): DeviceName[] {
  checkKeys(map, modulePaths);
  const { program, rematerialized: free } = facts;
  const devices: (DeviceName | undefined)[] = [];
  const uncovered = new Set<string>();
  for (const op of program.ops) {
    const weights = op.inputs
      .filter((id) => id >= 0)
      .map((id) => program.tensors[facts.storageOf(id)])
      .filter((tensor) => tensor?.kind === 'weight');
    let key = longestPrefix(map, op.module);
    if (key === undefined && weights.length > 0) {
      const keys = weights.map((tensor) => longestPrefix(map, tensor?.name ?? ''));
      for (const [i, found] of keys.entries()) if (found === undefined) uncovered.add(weights[i]?.name ?? '');
      key = keys.find((found) => found !== undefined);
    }
    devices.push(key === undefined ? undefined : map[key]);
  }
  if (uncovered.size > 0) {
    const names = [...uncovered];
    throw new DeviceMapError(
      `device_map: expected a device for every parameter, got none for ${names.slice(0, 4).join(', ')}${names.length > 4 ? ` and ${names.length - 4} more` : ''}`,
      { hint: 'add their modules, or "" for everything left', details: { uncovered: names } },
    );
  }
  return fillGaps(program, devices, free, otherwise);
}

function fillGaps(
  program: Program,
  devices: (DeviceName | undefined)[],
  free: ReadonlySet<number>,
  otherwise: DeviceName,
): DeviceName[] {
  let previous: DeviceName | undefined;
  for (const [i, device] of devices.entries()) {
    if (device === undefined && !free.has(i) && program.ops[i]?.op !== 'select_rows') devices[i] = previous;
    previous = devices[i] ?? previous;
  }
  let next: DeviceName | undefined;
  for (let i = devices.length - 1; i >= 0; i--) {
    devices[i] ??= next;
    next = devices[i];
  }
  return devices.map((device) => device ?? previous ?? otherwise);
}

/** Modules of other implementations that hold no weights and that our trees lack; maps made elsewhere name them. */
const HOLDS_NOTHING = /(^|\.)(drop|\w*dropout|act|rotary_emb)$/;

function checkKeys(map: Readonly<Record<string, DeviceName>>, modulePaths: ReadonlySet<string>): void {
  for (const key of Object.keys(map)) {
    if (key === '' || modulePaths.has(key) || HOLDS_NOTHING.test(key)) continue;
    const near = nearestWord(key, modulePaths);
    throw new DeviceMapError(`device_map: expected a module of the model, got "${key}"`, {
      hint: near === undefined ? 'see metashard plan for the names' : `did you mean "${near}"?`,
      details: { key },
    });
  }
}
