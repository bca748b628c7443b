/**
 * The placement behind `auto`: contiguous runs of units over devices that minimize what a request takes (latency: stage times and hops added up) or the
 * slowest stage (throughput), within every device's memory. Exact. Devices of equal size and speed form a class; with at most four classes their order is
 * free, by dynamic programming over how many of each class are used; with more, devices are taken in the order given.
 */
import { balancedPartition, type Ranges, sequentialPartition } from './partition.js';

export interface PlacementDevice {
  /** Bytes for weights and KV cache. */
  capacity: number;
  /** Milliseconds of units from … to - 1 for the expected request. */
  stageMs(from: number, to: number): number;
  /** Milliseconds of all hops of a request into this device. */
  hopMs: number;
  /** Devices with the same key are interchangeable. */
  key: string;
}

export interface Stage {
  /** Index in the problem's devices. */
  device: number;
  from: number;
  to: number;
}

export type Objective = 'latency' | 'throughput';

export interface PlacementProblem {
  ranges: Ranges;
  devices: readonly PlacementDevice[];
  objective: Objective;
}

const MOST_CLASSES = 4;

/**
 * The best placement, in order of execution; undefined when nothing fits. Of equal times the one with the fewest devices, then with the smallest largest
 * share of bytes, then the earliest devices.
 */
export function bestPlacement(problem: PlacementProblem): Stage[] | undefined {
  const classes = classesOf(problem.devices);
  if (classes.length === 1 && problem.objective === 'latency') return fewestEqualDevices(problem);
  return classes.length <= MOST_CLASSES
    ? freeOrderPlacement(problem, classes)
    : freeOrderPlacement(
        problem,
        problem.devices.map((_, i) => [i]),
        true,
      );
}

/** Device indices by class, classes in the order of their first device. */
function classesOf(devices: readonly PlacementDevice[]): number[][] {
  const classes = new Map<string, number[]>();
  for (const [i, { key }] of devices.entries()) classes.set(key, [...(classes.get(key) ?? []), i]);
  return [...classes.values()];
}

/** Equal devices: a unit takes the same time on any of them and every hop adds, so the fewest are the fastest; over these, the smallest largest share. */
function fewestEqualDevices({ ranges, devices }: PlacementProblem): Stage[] | undefined {
  const capacities = devices.map((device) => device.capacity);
  const filled = sequentialPartition({ ranges, capacities });
  if (filled === undefined) return undefined;
  const used = filled.indexOf(ranges.units.length) + 1;
  const ends = balancedPartition({ ranges, capacities: capacities.slice(0, used) });
  return ends === undefined ? undefined : stagesOf(ends);
}

/** Ends per device (equal ends: left empty) as stages. */
export function stagesOf(ends: readonly number[]): Stage[] {
  const stages: Stage[] = [];
  for (const [device, to] of ends.entries()) {
    const from = stages.at(-1)?.to ?? 0;
    if (to > from) stages.push({ device, from, to });
  }
  return stages;
}

interface Cell {
  ms: number;
  used: number;
  largest: number;
  /** The cell before: its state and how many units it holds; and which class took the rest. */
  state: number;
  units: number;
  taken: number;
}

/**
 * cell(counts, j): units 0 … j - 1 over `counts` devices of each class. `ordered`: classes are single devices and are used in their order only.
 * O(Π(devices of a class + 1) · classes · units²).
 */
function freeOrderPlacement(
  { ranges, devices, objective }: PlacementProblem,
  classes: readonly (readonly number[])[],
  ordered = false,
): Stage[] | undefined {
  const units = ranges.units.length;
  const radices = classes.map((members) => members.length + 1);
  const states = ordered ? classes.length + 1 : radices.reduce((a, b) => a * b, 1);
  const cells: (Cell | undefined)[][] = Array.from({ length: states }, () => []);
  (cells[0] as Cell[])[0] = { ms: 0, used: 0, largest: 0, state: 0, units: 0, taken: -1 };
  const strides = radices.map((_, c) => radices.slice(0, c).reduce((a, b) => a * b, 1));
  let best: { state: number; cell: Cell } | undefined;
  for (let state = 0; state < states; state++) {
    const here = cells[state] as (Cell | undefined)[];
    const done = here[units];
    if (done !== undefined && (best === undefined || isBetter(done, best.cell))) best = { state, cell: done };
    for (const [c, members] of classes.entries()) {
      const after = nextState(state, c, strides, radices, ordered);
      if (after === undefined) continue;
      const device = devices[members[0] as number] as PlacementDevice;
      extend(here, cells[after] as (Cell | undefined)[], { ranges, device, state, taken: c, objective });
    }
  }
  return best === undefined ? undefined : traceBack(best.state, units, cells, classes);
}

/** The state with one more device of class c; undefined when there is none left. */
function nextState(
  state: number,
  c: number,
  strides: readonly number[],
  radices: readonly number[],
  ordered: boolean,
): number | undefined {
  if (ordered) return c >= state ? c + 1 : undefined;
  const [stride, radix] = [strides[c] as number, radices[c] as number];
  return Math.floor(state / stride) % radix < radix - 1 ? state + stride : undefined;
}

/** Lets `device` take units i … j - 1 after every cell i. */
function extend(
  from: readonly (Cell | undefined)[],
  into: (Cell | undefined)[],
  {
    ranges,
    device,
    state,
    taken,
    objective,
  }: { ranges: Ranges; device: PlacementDevice; state: number; taken: number; objective: Objective },
): void {
  for (let i = 0; i < ranges.units.length; i++) {
    const before = from[i];
    if (before === undefined) continue;
    for (let j = i + 1; j <= ranges.units.length; j++) {
      const bytes = ranges.bytes(i, j);
      if (bytes > device.capacity) break;
      const stage = device.stageMs(i, j) + (i > 0 ? device.hopMs : 0);
      const ms = objective === 'latency' ? before.ms + stage : Math.max(before.ms, stage);
      const cell = { ms, used: before.used + 1, largest: Math.max(before.largest, bytes), state, units: i, taken };
      const known = into[j];
      if (known === undefined || isBetter(cell, known)) into[j] = cell;
    }
  }
}

/** Times within a billionth are equal. */
function isBetter(a: Cell, b: Cell): boolean {
  if (Math.abs(a.ms - b.ms) > 1e-9 * Math.max(a.ms, b.ms)) return a.ms < b.ms;
  return a.used < b.used || (a.used === b.used && a.largest < b.largest);
}

function traceBack(
  state: number,
  units: number,
  cells: readonly (readonly (Cell | undefined)[])[],
  classes: readonly (readonly number[])[],
): Stage[] {
  const runs: { taken: number; from: number; to: number }[] = [];
  for (let [at, to] = [state, units]; to > 0; ) {
    const cell = cells[at]?.[to] as Cell;
    runs.unshift({ taken: cell.taken, from: cell.units, to });
    [at, to] = [cell.state, cell.units];
  }
  const next = classes.map(() => 0);
  return runs.map(({ taken, from, to }) => {
    const member = next[taken] as number;
    next[taken] = member + 1;
    return { device: classes[taken]?.[member] as number, from, to };
  });
}
