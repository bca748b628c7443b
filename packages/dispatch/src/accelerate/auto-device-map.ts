/** What accelerate makes of `device_map="auto"` and its siblings: balanced budgets, then a map within them. */
import { ConfigError } from '@metashard/core';
import { balancedBudgets } from './balanced-memory.js';
import type { Model } from './graph.js';
import { type AccelerateDeviceMap, type InferDeviceMapOptions, mapWithin } from './infer-auto-device-map.js';
import { getMaxLayerSize } from './max-layer-size.js';
import { type Budgets, budgetsOf, isGpu } from './max-memory.js';
import { computeModuleSizes } from './module-sizes.js';

const MODES = ['auto', 'balanced', 'balanced_low_0', 'sequential'] as const;
export type DeviceMapMode = (typeof MODES)[number];

export interface AutoDeviceMapOptions extends InferDeviceMapOptions {
  /** `auto` is `balanced`; `balanced_low_0` spares the first GPU; `sequential` fills one device after another. Default auto. */
  mode?: DeviceMapMode | undefined;
}

/**
 * `inferAutoDeviceMap` within the budgets of `getBalancedMemory`. Where accelerate's budgets leave a GPU empty, `balanced`
 * lowers them to the smallest equal share that keeps everything where it was on the GPUs. Throws ConfigError, DtypeError.
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

/** The smallest equal share of the GPUs that puts no more outside of them, or undefined where that fills no more of them. */
function evenedBudgets(
  model: Model,
  deviceMap: AccelerateDeviceMap,
  { logger: _, ...options }: InferDeviceMapOptions,
): Budgets | undefined {
  const budgets = budgetsOf(options.maxMemory);
  const usable = [...budgets].filter(([device, bytes]) => isGpu(device) && bytes > 0);
  const filled = gpusIn(deviceMap);
  if (usable.length < 2 || filled === usable.length) return undefined;
  const sizes = computeModuleSizes(model, options);
  const [reserve] = getMaxLayerSize(model, { ...options, moduleSizes: sizes });
  const within = (share: number): Budgets => cappedBudgets(budgets, share, reserve);
  const outside = bytesOutside(deviceMap, sizes);
  const fits = (share: number): boolean => bytesOutside(mapWithin(model, within(share), options), sizes) <= outside;
  const share = smallestThat(fits, Math.max(...usable.map(([, bytes]) => bytes)));
  return fits(share) && gpusIn(mapWithin(model, within(share), options)) > filled ? within(share) : undefined;
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

function gpusIn(deviceMap: AccelerateDeviceMap): number {
  return new Set(Object.values(deviceMap).filter(isGpu)).size;
}

function bytesOutside(deviceMap: AccelerateDeviceMap, sizes: Readonly<Record<string, number>>): number {
  const outside = Object.entries(deviceMap).filter(([, device]) => !isGpu(device));
  return outside.reduce((sum, [path]) => sum + (sizes[path] ?? 0), 0);
}
