/**
 * The placement behind `auto`: contiguous runs of units over devices that minimize what a request takes (latency: stage
 * times and hops added up) or the slowest stage (throughput), within every device's memory. Exact. Devices of equal
 * size and speed form a class; with at most four classes their order is free, by dynamic programming over how many of
 * each class are used; with more, devices are taken in the order given.
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

/** What a placement minimizes: a request's time, or its slowest stage. */
export const OBJECTIVES = ['latency', 'throughput'] as const;
export type Objective = (typeof OBJECTIVES)[number];

export interface PlacementProblem {
  ranges: Ranges;
  devices: readonly PlacementDevice[];
  objective: Objective;
}

export interface BestPlacement {
  /** In order of execution. */
  stages: Stage[];
  /** Milliseconds of a request (latency), or of its slowest stage (throughput). */
  ms: number;
  /** Bytes of the largest share. */
  largest: number;
}

const MOST_CLASSES = 4;

/**
 * The best placement; undefined when nothing fits. Of equal times the one with the fewest devices, then with the
 * smallest largest share of bytes, then the earliest devices: their indices in order of execution, compared from the
 * first on.
 */
export function bestPlacement(problem: PlacementProblem): BestPlacement | undefined {
  const classes = classesOf(problem.devices);
  const stages =
    classes.length === 1 && problem.objective === 'latency'
      ? fewestEqualDevices(problem)
      : searchOrders(problem, classes.length <= MOST_CLASSES ? classes : undefined);
  return stages === undefined ? undefined : measure(problem, stages);
}

/** Whether a placement of the same problem is better than another. Times within a billionth are equal. */
export function isBetterPlacement(a: BestPlacement, b: BestPlacement): boolean {
  const order = compareTimes(a.ms, b.ms) || a.stages.length - b.stages.length || a.largest - b.largest;
  return order < 0;
}

function compareTimes(a: number, b: number): number {
  return Math.abs(a - b) > 1e-9 * Math.max(a, b) ? a - b : 0;
}

function measure({ ranges, devices, objective }: PlacementProblem, stages: Stage[]): BestPlacement {
  let [ms, largest] = [0, 0];
  for (const { device, from, to } of stages) {
    const own = stageTime(devices[device] as PlacementDevice, from, to);
    ms = objective === 'latency' ? ms + own : Math.max(ms, own);
    largest = Math.max(largest, ranges.bytes(from, to));
  }
  return { stages, ms, largest };
}

/** Units from … to - 1 and the hop that brings their input. */
function stageTime(device: PlacementDevice, from: number, to: number): number {
  return device.stageMs(from, to) + (from > 0 ? device.hopMs : 0);
}

/** Device indices by class, classes in the order of their first device. */
function classesOf(devices: readonly PlacementDevice[]): number[][] {
  const classes = new Map<string, number[]>();
  for (const [i, { key }] of devices.entries()) classes.set(key, [...(classes.get(key) ?? []), i]);
  return [...classes.values()];
}

/**
 * Equal devices: a unit takes the same time on any of them and every hop adds, so the fewest are the fastest; over
 * these, the smallest largest share.
 */
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

/** What a pass over all placements looks for, and what it may not exceed. */
interface Pass {
  /** The sum or the largest of stage times; 'none': any within the limits. */
  time: 'sum' | 'largest' | 'none';
  tie: 'largest share' | 'earliest devices';
  mostMs: number;
  mostBytes: number;
}

/**
 * All criteria exactly, by passes: a table keeps one best beginning per state, which is right only while a better
 * beginning never makes a worse whole. A largest share (or slowest stage) of a beginning may be outdone by what
 * follows, so it is found first and then is a limit.
 */
function searchOrders(problem: PlacementProblem, classes: readonly (readonly number[])[] | undefined) {
  const table = new OrderTable(problem, classes);
  let [mostMs, time]: [number, Pass['time']] = [Number.POSITIVE_INFINITY, 'sum'];
  if (problem.objective === 'throughput') {
    const fastest = table.search({
      time: 'largest',
      tie: 'largest share',
      mostMs,
      mostBytes: Number.POSITIVE_INFINITY,
    });
    if (fastest === undefined) return undefined;
    [mostMs, time] = [fastest.ms * (1 + 1e-9), 'none'];
  }
  const spread = table.search({ time, tie: 'largest share', mostMs, mostBytes: Number.POSITIVE_INFINITY });
  if (spread === undefined) return undefined;
  const best = table.search({ time, tie: 'earliest devices', mostMs, mostBytes: spread.largest }) as Cell;
  return chainOf(best).map(({ device, from, to }) => ({ device, from, to }));
}

/** The best way to have placed units 0 … to - 1 over certain numbers of devices: its last stage and the cell before. */
interface Cell extends Stage {
  ms: number;
  used: number;
  largest: number;
  before: Cell | undefined;
}

function chainOf(last: Cell): Cell[] {
  const chain: Cell[] = [];
  for (let cell: Cell | undefined = last; cell !== undefined && cell.used > 0; cell = cell.before) chain.unshift(cell);
  return chain;
}

/**
 * cell(counts, j): units 0 … j - 1 over `counts` devices of each class, O(Π(devices of a class + 1) · classes ·
 * units²). Without classes, devices are used in their order only and the state is how many of them were considered.
 */
class OrderTable {
  readonly #classes: readonly (readonly number[])[];
  readonly #radices: number[];
  readonly #strides: number[];
  readonly #states: number;
  /** By from · (units + 1) + to: asked for over and over. */
  readonly #bytes: Float64Array;
  readonly #times: readonly Float64Array[];

  constructor(
    readonly problem: PlacementProblem,
    classes: readonly (readonly number[])[] | undefined,
  ) {
    this.#classes = classes ?? [];
    this.#radices = this.#classes.map((members) => members.length + 1);
    this.#strides = this.#radices.map((_, c) => this.#radices.slice(0, c).reduce((a, b) => a * b, 1));
    this.#bytes = tableOf(problem.ranges, (from, to) => problem.ranges.bytes(from, to));
    const byKey = new Map<string, Float64Array>();
    this.#times = problem.devices.map((device) => {
      const known = byKey.get(device.key) ?? tableOf(problem.ranges, (from, to) => stageTime(device, from, to));
      byKey.set(device.key, known);
      return known;
    });
    this.#states = classes === undefined ? problem.devices.length + 1 : this.#radices.reduce((a, b) => a * b, 1);
  }

  search(pass: Pass): Cell | undefined {
    const units = this.problem.ranges.units.length;
    const cells: (Cell | undefined)[][] = Array.from({ length: this.#states }, () => []);
    (cells[0] as Cell[])[0] = { device: -1, from: 0, to: 0, ms: 0, used: 0, largest: 0, before: undefined };
    let best: Cell | undefined;
    for (const [state, here] of cells.entries()) {
      const done = here[units];
      if (done !== undefined && (best === undefined || isBetterCell(done, best, pass))) best = done;
      for (const { device, after } of this.#next(state)) {
        const into = cells[after] as (Cell | undefined)[];
        // Used in their order only, a device may be passed over.
        if (this.#classes.length === 0) keepBetter(here, into, pass);
        this.#extend(here, into, device, pass);
      }
    }
    return best;
  }

  /** Devices that may come next, and the state after them. */
  #next(state: number): { device: number; after: number }[] {
    if (this.#classes.length === 0)
      return state < this.problem.devices.length ? [{ device: state, after: state + 1 }] : [];
    return this.#classes.flatMap((members, c) => {
      const [stride, radix] = [this.#strides[c] as number, this.#radices[c] as number];
      const device = members[Math.floor(state / stride) % radix];
      return device === undefined ? [] : [{ device, after: state + stride }];
    });
  }

  /** Lets a device take units i … j - 1 after every cell i. */
  #extend(from: readonly (Cell | undefined)[], into: (Cell | undefined)[], index: number, pass: Pass): void {
    const { ranges, devices } = this.problem;
    const capacity = Math.min((devices[index] as PlacementDevice).capacity, pass.mostBytes);
    const times = this.#times[index] as Float64Array;
    const units = ranges.units.length;
    for (let i = 0; i < units; i++) {
      const before = from[i];
      if (before === undefined) continue;
      for (let j = i + 1; j <= units; j++) {
        const bytes = this.#bytes[i * (units + 1) + j] as number;
        if (bytes > capacity) break;
        const stage = times[i * (units + 1) + j] as number;
        if (stage > pass.mostMs) continue;
        const ms = timeOf(before.ms, stage, pass);
        const largest = Math.max(before.largest, bytes);
        const known = into[j];
        // A cell is made only where it stays: this is the innermost loop.
        if (known === undefined || isBetter(ms, before.used + 1, largest, before, index, known, pass))
          into[j] = { device: index, from: i, to: j, ms, used: before.used + 1, largest, before };
      }
    }
  }
}

/** Values of all runs of units. */
function tableOf({ units }: Ranges, value: (from: number, to: number) => number): Float64Array {
  const table = new Float64Array(units.length * (units.length + 1));
  for (let from = 0; from < units.length; from++) {
    for (let to = from + 1; to <= units.length; to++) table[from * (units.length + 1) + to] = value(from, to);
  }
  return table;
}

function keepBetter(from: readonly (Cell | undefined)[], into: (Cell | undefined)[], pass: Pass): void {
  for (const [units, cell] of from.entries()) {
    const known = into[units];
    if (cell !== undefined && (known === undefined || isBetterCell(cell, known, pass))) into[units] = cell;
  }
}

function timeOf(before: number, stage: number, { time }: Pass): number {
  if (time === 'none') return 0;
  return time === 'sum' ? before + stage : Math.max(before, stage);
}

function isBetterCell(a: Cell, b: Cell, pass: Pass): boolean {
  return isBetter(a.ms, a.used, a.largest, a.before, a.device, b, pass);
}

/** Whether a cell of these values, `device` after `before`, is better than b. */
function isBetter(
  ms: number,
  used: number,
  largest: number,
  before: Cell | undefined,
  device: number,
  b: Cell,
  { tie }: Pass,
): boolean {
  const order = compareTimes(ms, b.ms) || used - b.used;
  if (order !== 0) return order < 0;
  return tie === 'largest share' ? largest < b.largest : isEarlier(before, device, b);
}

/**
 * Compares orders of as many devices each: the first difference, which is the last one met on the way back, decides.
 */
function isEarlier(before: Cell | undefined, device: number, b: Cell): boolean {
  let [difference, mine, theirs]: [number, Cell | undefined, Cell | undefined] = [device - b.device, before, b.before];
  while (mine !== undefined && theirs !== undefined && mine !== theirs) {
    if (mine.device !== theirs.device) difference = mine.device - theirs.device;
    [mine, theirs] = [mine.before, theirs.before];
  }
  return difference < 0;
}
