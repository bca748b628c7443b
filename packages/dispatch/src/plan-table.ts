/**
 * The device plan as a table for people: one row per device with its blocks and bytes, and below it everything that is
 * not as one would expect.
 */
import { formatBytes } from '@metashard/core';
import { drawTable } from './draw-table.js';
import type { DevicePlan, PlanDevice, PlanSegment } from './plan.js';

/** Uses of memory in the order of the tables and pictures; `free` follows. */
export const MEMORY_USES: readonly { name: string; bytes: (device: PlanDevice) => number; isRare?: boolean }[] = [
  { name: 'weights', bytes: (device) => device.weightsBytes },
  { name: 'KV cache', bytes: (device) => device.kvCacheBytes },
  { name: 'activations', bytes: (device) => device.activationsBytes },
  { name: 'scratch', bytes: (device) => device.scratchBytes },
  { name: 'windows', bytes: (device) => device.windowBytes, isRare: true },
  { name: 'reserve', bytes: (device) => device.reserveBytes },
];

/** A disk without a limit has no free bytes worth a figure. */
export function isUnlimited({ budgetBytes }: PlanDevice): boolean {
  return budgetBytes >= Number.MAX_SAFE_INTEGER;
}

/**
 * A table of several lines, without a newline at the end. No colours. `columns`: of the terminal; without it, as wide
 * as it gets.
 */
export function formatPlanTable(plan: DevicePlan, { columns }: { columns?: number | undefined } = {}): string {
  const paths = segmentNames(plan.segments);
  const shorten = withoutBasePrefix(paths.flat());
  const names = paths.map((segment) => segment.map(shorten));
  const uses = MEMORY_USES.filter(({ bytes, isRare }) => !isRare || plan.devices.some((device) => bytes(device) > 0));
  const rows = plan.devices.map((device) => [
    device.emulated ? `${device.name} (emulated)` : device.name,
    describeSegments(plan, names, device.name),
    ...uses.map(({ bytes }) => formatBytes(bytes(device))),
    isUnlimited(device) ? '–' : formatBytes(device.freeBytes),
  ]);
  const totals = ['total', '', ...planSums(plan, uses).map(formatBytes)];
  const header = ['device', 'blocks', ...uses.map(({ name }) => name), 'free'];
  return [
    planTitle(plan),
    drawTable(header, rows, { totals, columns }),
    expectedTime(plan),
    ...notes(plan, shorten),
  ].join('\n');
}

/** `bloom: device_map balanced, max_seq_len 2048, max_batch_size 1` */
export function planTitle({ model, strategy, objective, maxSeqLen, maxBatchSize }: DevicePlan): string {
  const map = strategy === 'explicit' ? 'explicit device map' : `device_map ${strategy}`;
  const goal = strategy === 'auto' && objective !== 'latency' ? ` for ${objective}` : '';
  return `${model}: ${map}${goal}, max_seq_len ${maxSeqLen}, max_batch_size ${maxBatchSize}`;
}

/** `126 ms a token expected (datasheet figures)`: of the devices and what is streamed, without hops. */
export function expectedTime({ devices, costs }: DevicePlan): string {
  const ms = devices.reduce((total, { expectedMs }) => total + expectedMs, 0);
  return `${formatMs(ms)} a token expected (${costs} figures)`;
}

/** `0.19 ms`, `126 ms`, `61 s` */
export function formatMs(ms: number): string {
  if (ms >= 1e4) return `${(ms / 1e3).toFixed(0)} s`;
  return `${ms >= 100 ? ms.toFixed(0) : ms.toPrecision(2)} ms`;
}

/** Bytes of each use over all devices, then what is free on those with a limit. */
export function planSums({ devices }: DevicePlan, uses = MEMORY_USES): number[] {
  const sum = (among: readonly PlanDevice[], bytes: (device: PlanDevice) => number): number =>
    among.reduce((total, device) => total + bytes(device), 0);
  const limited = devices.filter((device) => !isUnlimited(device));
  return [...uses.map(({ bytes }) => sum(devices, bytes)), sum(limited, ({ freeBytes }) => freeBytes)];
}

/**
 * `word_embeddings, h.0–h.3; ln_f → cuda:0`: segments in order of execution, the executing device where it is another
 * one.
 */
function describeSegments(plan: DevicePlan, names: readonly string[][], device: string): string {
  const texts = plan.segments.flatMap((segment, i) => {
    if (segment.device !== device) return [];
    const text = compactNames(names[i] as string[]).join(', ');
    return [segment.executeOn === device ? text : `${text} → ${segment.executeOn}`];
  });
  return texts.join('; ') || '–';
}

/**
 * Per segment, its modules as few names: a block (the path up to its number) that lies in one segment is one name, one
 * that is cut shows its parts. What lies in several segments and is no block (rotary tables, the root's own ops) is
 * shown only where nothing else is.
 */
function segmentNames(segments: readonly PlanSegment[]): string[][] {
  const levels = [(path: string) => blockPath(path), (path: string) => blockPath(path, 1), (path: string) => path];
  const counts = levels.map((level) => {
    const count = new Map<string, number>();
    for (const { modules } of segments) {
      for (const name of new Set(modules.map((path) => level(path)))) count.set(name, (count.get(name) ?? 0) + 1);
    }
    return count;
  });
  return segments.map(({ modules }) => {
    const named = modules.map((path) => {
      const at = levels.findIndex((level, i) => counts[i]?.get(level(path)) === 1);
      return { name: (levels[at] ?? ((own: string) => own))(path), isShared: at < 0 && !/\d/.test(path) };
    });
    const own = named.filter(({ name, isShared }) => name !== '' && !isShared);
    return [...new Set((own.length > 0 ? own : named).map(({ name }) => name || '(root)'))];
  });
}

/**
 * `transformer.h.3.mlp.dense` → `transformer.h.3`, with `more` = 1 `transformer.h.3.mlp`; a path without a number
 * stays.
 */
function blockPath(path: string, more = 0): string {
  const parts = path.split('.');
  const at = parts.findIndex((part) => /^\d+$/.test(part));
  return at < 0 ? path : parts.slice(0, at + 1 + more).join('.');
}

/** Drops the base model's prefix (`transformer.`, `model.`): a first component that most paths share. */
function withoutBasePrefix(paths: readonly string[]): (path: string) => string {
  const counts = new Map<string, number>();
  for (const path of paths) {
    const [first, ...rest] = path.split('.');
    if (rest.length > 0 && first !== undefined && !/^\d+$/.test(rest[0] as string))
      counts.set(first, (counts.get(first) ?? 0) + 1);
  }
  const [prefix, count] = [...counts].sort((a, b) => b[1] - a[1])[0] ?? ['', 0];
  return (path) => (count * 2 > paths.length && path.startsWith(`${prefix}.`) ? path.slice(prefix.length + 1) : path);
}

/** `h.0, h.1, h.2` → `h.0–h.2`; other names stay, repeated neighbours once. */
export function compactNames(names: readonly string[]): string[] {
  const runs: { first: string; last: string }[] = [];
  for (const name of names) {
    const run = runs.at(-1);
    if (run?.last === name) continue;
    if (run !== undefined && follows(run.last, name)) run.last = name;
    else runs.push({ first: name, last: name });
  }
  return runs.map(({ first, last }) => (first === last ? first : `${first}–${last}`));
}

/** Whether two names differ in one number only, the second's being one more. */
function follows(a: string, b: string): boolean {
  const [left, right] = [a.split('.'), b.split('.')];
  if (left.length !== right.length) return false;
  const differing = left.flatMap((part, i) => (part === right[i] ? [] : [i]));
  const at = differing[0];
  if (differing.length !== 1 || at === undefined) return false;
  const isNumber = /^\d+$/.test(left[at] as string) && /^\d+$/.test(right[at] as string);
  return isNumber && Number(right[at]) === Number(left[at]) + 1;
}

/** What is left in float, offloaded, stored twice or ignored: a line each, as below the table. */
export function planNotes(plan: DevicePlan): string[] {
  return notes(plan, withoutBasePrefix(plan.segments.flatMap(({ modules }) => modules)));
}

function notes(plan: DevicePlan, shorten: (path: string) => string): string[] {
  const lines: string[] = [];
  const byReason = groupBy(plan.skipped, ({ reason }) => reason);
  for (const [reason, skipped] of byReason) {
    lines.push(`left in float (${reason}): ${collapse(skipped.map(({ module }) => shorten(module)))}`);
  }
  for (const [device, offloaded] of groupBy(plan.offloaded, (entry) => entry.device)) {
    lines.push(`offloaded to ${device}: ${collapse(offloaded.map(({ module }) => shorten(module)))}`);
  }
  lines.push(...spillNotes(plan));
  for (const { tensor, device, bytes } of plan.copies) {
    lines.push(`stored once more on ${device}: ${shorten(tensor)} (${formatBytes(bytes)})`);
  }
  if (plan.ignoredConfigFields.length > 0) {
    lines.push(`fields of config.json without effect: ${plan.ignoredConfigFields.join(', ')}`);
  }
  return lines;
}

/** What it costs that the GPUs, or all devices, do not hold everything. */
function spillNotes({ strategy, devices, costs }: DevicePlan): string[] {
  const lines: string[] = [];
  const total = devices.reduce((sum, { expectedMs }) => sum + expectedMs, 0);
  const hasGpus = devices.some(({ name, weightsBytes }) => name.startsWith('cuda') && weightsBytes > 0);
  for (const { name, weightsBytes, expectedMs } of devices) {
    if (name === 'disk' && weightsBytes > 0)
      lines.push(
        `streamed from disk for every token: ${formatBytes(weightsBytes)}, ${formatMs(expectedMs)} where none of it is in memory (${costs} figures)`,
      );
    else if (strategy !== 'explicit' && hasGpus && name.startsWith('cpu') && weightsBytes > 0)
      lines.push(
        `spilled to ${name}: ${formatBytes(weightsBytes)}, ${formatMs(expectedMs)} of ${formatMs(total)} a token`,
      );
  }
  return lines;
}

function groupBy<Item>(items: readonly Item[], key: (item: Item) => string): Map<string, Item[]> {
  const groups = new Map<string, Item[]>();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) ?? []), item]);
  return groups;
}

/**
 * Names of one reason: ranges per kind of module, so that `h.0.dense, h.0.fc, h.1.dense, …` becomes
 * `h.0.dense–h.1.dense, …`.
 */
function collapse(names: readonly string[]): string {
  const kinds = groupBy(names, (name) => name.replaceAll(/\d+/g, '#'));
  return [...kinds.values()].flatMap(compactNames).join(', ');
}
