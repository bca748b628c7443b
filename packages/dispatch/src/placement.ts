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
 * The best placement; undefined when nothing fits. Of equal times the one with the fewest devices, then with the smallest largest share of bytes, then the
 * earliest devices: their indices in order of execution, compared from the first on.
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

/** What a pass over all placements looks for, and what it may not exceed. */
interface Pass {
  /** The sum or the largest of stage times; 'none': any within the limits. */
  time: 'sum' | 'largest' | 'none';
  tie: 'largest share' | 'earliest devices';
  mostMs: number;
  mostBytes: number;
}

/**
 * All criteria exactly, by passes: a table keeps one best beginning per state, which is right only while a better beginning never makes a worse whole. A
 * largest share (or slowest stage) of a beginning may be outdone by what follows, so it is found first and then is a limit.
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
 * cell(counts, j): units 0 … j - 1 over `counts` devices of each class, O(Π(devices of a class + 1) · classes · units²). Without classes, devices are used
 * in their order only and the state is how many of them were considered.
 */
class OrderTable {
  readonly #classes: readonly (readonly number[])[];
  readonly #radices: number[];
  readonly #strides: number[];
  readonly #states: number;

  constructor(
    readonly problem: PlacementProblem,
    classes: readonly (readonly number[])[] | undefined,
  ) {
    this.#classes = classes ?? [];
    this.#radices = this.#classes.map((members) => members.length + 1);
    this.#strides = this.#radices.map((_, c) => this.#radices.slice(0, c).reduce((a, b) => a * b, 1));
    this.#states = classes === undefined ? problem.devices.length + 1 : this.#radices.reduce((a, b) => a * b, 1);
  }

  search(pass: Pass): Cell | undefined {
    const units = this.problem.ranges.units.length;
    const cells: (Cell | undefined)[][] = Array.from({ length: this.#states }, () => []);
    (cells[0] as Cell[])[0] = { device: -1, from: 0, to: 0, ms: 0, used: 0, largest: 0, before: undefined };
    let best: Cell | undefined;
    for (const [state, here] of cells.entries()) {
      const done = here[units];
      if (done !== undefined && (best === undefined || isBetter(done, best, pass))) best = done;
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
    const device = devices[index] as PlacementDevice;
    const capacity = Math.min(device.capacity, pass.mostBytes);
    for (let i = 0; i < ranges.units.length; i++) {
      const before = from[i];
      if (before === undefined) continue;
      for (let j = i + 1; j <= ranges.units.length; j++) {
        const bytes = ranges.bytes(i, j);
        if (bytes > capacity) break;
        const stage = stageTime(device, i, j);
        if (stage > pass.mostMs) continue;
        const cell = {
          device: index,
          from: i,
          to: j,
          ms: timeOf(before.ms, stage, pass),
          used: before.used + 1,
          largest: Math.max(before.largest, bytes),
          before,
        };
        keep(cell, into, j, pass);
      }
    }
  }
}

function keep(cell: Cell, into: (Cell | undefined)[], units: number, pass: Pass): void {
  const known = into[units];
  if (known === undefined || isBetter(cell, known, pass)) into[units] = cell;
}

function keepBetter(from: readonly (Cell | undefined)[], into: (Cell | undefined)[], pass: Pass): void {
  for (const [units, cell] of from.entries()) if (cell !== undefined) keep(cell, into, units, pass);
}

function timeOf(before: number, stage: number, { time }: Pass): number {
  if (time === 'none') return 0;
  return time === 'sum' ? before + stage : Math.max(before, stage);
}

function isBetter(a: Cell, b: Cell, { tie }: Pass): boolean {
  const order = compareTimes(a.ms, b.ms) || a.used - b.used;
  if (order !== 0) return order < 0;
  return tie === 'largest share' ? a.largest < b.largest : isEarlier(a, b);
}

/** Both have used as many devices. */
function isEarlier(a: Cell, b: Cell): boolean {
  const theirs = chainOf(b);
  for (const [i, { device }] of chainOf(a).entries()) {
    const other = (theirs[i] as Cell).device;
    if (device !== other) return device < other;
  }
  return false;
}
