/** What accelerate makes of `device_map="auto"` and its siblings: balanced budgets, then a map within them. */
import { ConfigError } from '@metashard/core';
import { balancedBudgets } from './balanced-memory.js';
import type { Model } from './graph.js';
import { type AccelerateDeviceMap, type InferDeviceMapOptions, mapWithin } from './infer-auto-device-map.js';
import { getMaxLayerSize } from './max-layer-size.js';
import { type Budgets, budgetsOf, type DeviceKey, isGpu } from './max-memory.js';
import { computeModuleSizes } from './module-sizes.js';

const MODES = ['auto', 'balanced', 'balanced_low_0', 'sequential'] as const;
export type DeviceMapMode = (typeof MODES)[number];

export interface AutoDeviceMapOptions extends InferDeviceMapOptions {
  /**
   * `auto` is `balanced`; `balanced_low_0` spares the first GPU; `sequential` fills one device after another. Default
   * auto.
   */
  mode?: DeviceMapMode | undefined;
}

/**
 * `inferAutoDeviceMap` within the budgets of `getBalancedMemory`. Where that leaves a GPU empty
 * and the largest share can be smaller, the budgets of `balanced` are lowered to the smallest equal share that puts no
 * more outside of the GPUs. Throws ConfigError, DtypeError.
 */
export function autoDeviceMap(
  model: Model,
  { mode = 'auto', ...options }: AutoDeviceMapOptions = {},
): AccelerateDeviceMap {
  if (!MODES.includes(mode)) throw new ConfigError(`device_map: expected one of ${MODES.join(', ')}, got "${mode}"`);
  if (mode === 'sequential') return mapWithin(model, budgetsOf(options.maxMemory), options);
  const budgets = balancedBudgets(model, { ...options, lowZero: mode === 'balanced_low_0' });
  const { logger: _, ...quiet } = options;
  const deviceMap = mapWithin(model, budgets, quiet);
  const evened = mode === 'balanced_low_0' ? undefined : evenedBudgets(model, deviceMap, options);
  return mapWithin(model, evened ?? budgets, options);
}

/**
 * The smallest equal share of the GPUs that puts no more outside of them; undefined where none is empty or none gets
 * less.
 */
function evenedBudgets(
  model: Model,
  deviceMap: AccelerateDeviceMap,
  { logger: _, ...options }: InferDeviceMapOptions,
): Budgets | undefined {
  const budgets = budgetsOf(options.maxMemory);
  const usable = [...budgets].filter(([device, bytes]) => isGpu(device) && bytes > 0);
  const filled = new Set(Object.values(deviceMap).filter(isGpu)).size;
  if (usable.length < 2 || filled === usable.length) return undefined;
  const sizes = computeModuleSizes(model, options);
  const [reserve] = getMaxLayerSize(model, { ...options, moduleSizes: sizes });
  const mapOf = (share: number) => mapWithin(model, cappedBudgets(budgets, share, reserve), options);
  const outside = bytesOutside(deviceMap, sizes);
  const fits = (share: number): boolean => bytesOutside(mapOf(share), sizes) <= outside;
  const share = smallestThat(fits, Math.max(...usable.map(([, bytes]) => bytes)));
  const isEvener = fits(share) && largestShare(mapOf(share), sizes) < largestShare(deviceMap, sizes);
  return isEvener ? cappedBudgets(budgets, share, reserve) : undefined;
}

/** Budgets of at most `share` on each GPU; the first, which executes what is offloaded, keeps its reserve beside it. */
function cappedBudgets(budgets: Budgets, share: number, reserve: number): Budgets {
  const first = [...budgets.keys()].find(isGpu);
  return new Map(
    [...budgets].map(([device, bytes]) => [
      device,
      isGpu(device) ? Math.min(bytes, device === first ? share + reserve : share) : bytes,
    ]),
  );
}

/** The smallest whole number up to `most` that passes a test which, once passed, larger ones pass too. */
function smallestThat(passes: (value: number) => boolean, most: number): number {
  let low = 0;
  let high = Math.ceil(most);
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (passes(middle)) high = middle;
    else low = middle + 1;
  }
  return high;
}

function bytesOutside(deviceMap: AccelerateDeviceMap, sizes: Readonly<Record<string, number>>): number {
  const outside = Object.entries(deviceMap).filter(([, device]) => !isGpu(device));
  return outside.reduce((sum, [path]) => sum + (sizes[path] ?? 0), 0);
}

function largestShare(deviceMap: AccelerateDeviceMap, sizes: Readonly<Record<string, number>>): number {
  const shares = new Map<DeviceKey, number>();
  for (const [path, device] of Object.entries(deviceMap)) {
    if (isGpu(device)) shares.set(device, (shares.get(device) ?? 0) + (sizes[path] ?? 0));
  }
  return Math.max(0, ...shares.values());
}
