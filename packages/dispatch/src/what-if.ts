/**
 * Plans one model for every combination of numbers of devices, contexts and batch sizes: does it fit, and how fast
 * would it be? Nothing is loaded.
 */
import { ConfigError, type DeviceName, MetashardError, nearestWord, parseDevice } from '@metashard/core';
import { resolveDevices } from './devices.js';
import { planSource, recordSource } from './load-model.js';
import { openModelSource } from './model-source.js';
import type { LoadModelOptions } from './options.js';
import type { DevicePlan } from './plan.js';

export const WHAT_IF_AXES = ['devices', 'max_seq_len', 'max_batch_size'] as const;
type AxisName = (typeof WHAT_IF_AXES)[number];

/** Values to try per axis; an axis left out keeps the options' value. */
export type WhatIfAxes = Partial<Record<AxisName, readonly number[]>>;

export interface WhatIfRow {
  /** As asked for; else how many compute. */
  devices: number;
  maxSeqLen: number;
  maxBatchSize: number;
  fits: boolean;
  /** Where least is free, or most is missing. null: the combination cannot be planned at all. */
  tightest: { device: DeviceName; neededBytes: number; availableBytes: number } | null;
  /** Weights that would be streamed from disk in every step. */
  offloadedBytes: number;
  /** Expected milliseconds per token; null where it does not fit. */
  expectedMs: number | null;
  /** What `expectedMs` rests on. */
  costs: DevicePlan['costs'] | null;
  /** Why it does not fit, in a sentence. */
  problem: string | null;
}

const MOST_ROWS = 64;

/**
 * One row per combination, the last axis fastest. `devices: n` means n devices like the first one (of its type, the
 * added ones with the memory of the last), those of other types staying as they are. Throws ConfigError for more than
 * 64 rows, and what planning throws but InsufficientMemoryError.
 */
export async function whatIf(
  nameOrFolder: string,
  options: LoadModelOptions,
  axes: WhatIfAxes,
): Promise<{ model: string; rows: WhatIfRow[] }> {
  const lengths: readonly (number | undefined)[] = axes.max_seq_len ?? [options.maxSeqLen];
  const sizes: readonly (number | undefined)[] = axes.max_batch_size ?? [options.maxBatchSize];
  const counts: readonly (number | undefined)[] = axes.devices ?? [undefined];
  checkSize(lengths.length * sizes.length * counts.length);
  const source = await openModelSource(nameOrFolder, options);
  const steps = lengths.flatMap((maxSeqLen) =>
    sizes.map((maxBatchSize) => {
      const given = withoutUndefined({ ...options, maxSeqLen, maxBatchSize });
      return { given, plan: plannerFor(source, given) };
    }),
  );
  const rows = counts.flatMap((count) =>
    steps.map(({ given, plan }) => {
      const devices = count === undefined ? given : withDeviceCount(given, count);
      const computing = resolveDevices(devices).filter(({ name }) => name !== 'disk');
      return describe(count ?? computing.length, devices, () => plan(devices));
    }),
  );
  return { model: nameOrFolder, rows };
}

/** Records at once, plans when called; a size the model cannot have fails when planned. */
function plannerFor(source: Awaited<ReturnType<typeof openModelSource>>, options: LoadModelOptions) {
  let recorded: ReturnType<typeof recordSource> | undefined;
  return (devices: LoadModelOptions): DevicePlan => {
    recorded ??= recordSource(source, options);
    return planSource(source, recorded, devices).plan;
  };
}

function describe(devices: number, options: LoadModelOptions, plan: () => DevicePlan): WhatIfRow {
  const { maxSeqLen = 0, maxBatchSize = 1 } = options;
  const asked = { devices, maxSeqLen, maxBatchSize };
  try {
    const made = plan();
    const tightest = made.devices.reduce((a, b) => (b.freeBytes < a.freeBytes ? b : a));
    const { name: device, budgetBytes: availableBytes, freeBytes } = tightest;
    return {
      ...asked,
      maxSeqLen: made.maxSeqLen,
      fits: true,
      tightest: { device, neededBytes: availableBytes - freeBytes, availableBytes },
      offloadedBytes: made.devices.find(({ name }) => name === 'disk')?.weightsBytes ?? 0,
      expectedMs: made.devices.reduce((sum, { expectedMs }) => sum + expectedMs, 0),
      costs: made.costs,
      problem: null,
    };
  } catch (error) {
    const expected =
      MetashardError.isInstance(error) && ['InsufficientMemoryError', 'ConfigError'].includes(error.name);
    if (!expected) throw error;
    return {
      ...asked,
      fits: false,
      tightest: shortage(error),
      offloadedBytes: 0,
      expectedMs: null,
      costs: null,
      problem: error.message,
    };
  }
}

function shortage({ details }: MetashardError): WhatIfRow['tightest'] {
  const { device, neededBytes, availableBytes } = details;
  if (typeof device !== 'string' || typeof neededBytes !== 'number' || typeof availableBytes !== 'number') return null;
  return { device, neededBytes, availableBytes };
}

/** The options with `count` devices of the first one's type; added ones get the budget of the last of them. */
export function withDeviceCount(options: LoadModelOptions, count: number): LoadModelOptions {
  const all = resolveDevices(options);
  const type = parseDevice(all[0]?.name ?? 'cpu').type;
  const same = all.filter(({ name }) => parseDevice(name).type === type);
  const others = all.filter((device) => !same.includes(device));
  const last = same.at(-1) as (typeof same)[number];
  const next = Math.max(...same.map(({ name }) => parseDevice(name).index)) + 1;
  const added = Array.from({ length: Math.max(0, count - same.length) }, (_, i) => `${type}:${next + i}`);
  const names = [...same.slice(0, count).map(({ name }) => name), ...added, ...others.map(({ name }) => name)];
  const limits = new Map(Object.entries(options.maxMemory ?? {}).map(([name, size]) => [parseDevice(name).name, size]));
  // CPU devices without a limit share the machine's memory among however many there are.
  const own = limits.get(last.name) ?? (type === 'cpu' ? undefined : last.budgetBytes);
  if (own !== undefined) for (const name of added) limits.set(name, own);
  return {
    ...options,
    devices: names,
    maxMemory: Object.fromEntries([...limits].filter(([name]) => names.includes(name))),
  };
}

function withoutUndefined(options: { [Key in keyof LoadModelOptions]: LoadModelOptions[Key] | undefined }) {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as LoadModelOptions;
}

function checkSize(rows: number): void {
  if (rows > MOST_ROWS) throw new ConfigError(`--what-if: expected at most ${MOST_ROWS} combinations, got ${rows}`);
}

/** Reads `["devices=1,2,4", "max_seq_len=2048"]`; dashes count as underscores. Throws ConfigError. */
export function readWhatIf(texts: readonly string[]): WhatIfAxes {
  const axes: Partial<Record<AxisName, number[]>> = {};
  for (const text of texts) {
    const [left = '', right = ''] = text.split('=', 2);
    const name = left.trim().replaceAll('-', '_');
    const axis = WHAT_IF_AXES.find((one) => one === name);
    if (axis === undefined) {
      const near = nearestWord(name, WHAT_IF_AXES);
      const meant = near === undefined ? '' : ` (did you mean ${near}?)`;
      throw new ConfigError(`--what-if: expected ${WHAT_IF_AXES.join(', ')}, got ${JSON.stringify(left)}${meant}`, {
        hint: 'for instance --what-if devices=1,2,4 --what-if max_seq_len=2048,8192',
      });
    }
    const values = right.split(',').map((one) => (/^\s*\d+\s*$/.test(one) ? Number(one) : 0));
    if (values.some((value) => !Number.isSafeInteger(value) || value < 1)) {
      throw new ConfigError(`--what-if ${axis}: expected whole numbers of at least 1, got ${JSON.stringify(right)}`);
    }
    axes[axis] = [...new Set([...(axes[axis] ?? []), ...values])];
  }
  return axes;
}
