/**
 * An output head tied to the embeddings, kept whole: the head computes on the device that holds the table, which costs
 * a hop back to it and saves the copy that a head elsewhere needs. The model without its head is then partitioned as
 * any other; whoever takes the first unit takes the head with it.
 */
import type { Ranges, Unit } from './partition.js';
import {
  bestPlacement,
  isBetterPlacement,
  type PlacementDevice,
  type PlacementProblem,
  type Stage,
} from './placement.js';

/**
 * The best placement, the tied head where it is with a copy of the table, or returning to the table, whichever is
 * better: a copy costs no time where it fits, a return costs a hop and may save a device. undefined when neither fits.
 */
export function bestTiedPlacement({ ranges, devices, objective }: PlacementProblem): Stage[] | undefined {
  const copied = bestPlacement({ ranges, devices, objective });
  const whole = WithReturningHead.of(ranges);
  const returning =
    whole && bestPlacement({ ranges: whole, devices: devices.map((device) => whole.device(device)), objective });
  if (returning === undefined || (copied !== undefined && !isBetterPlacement(returning, copied))) return copied?.stages;
  return whole?.stages(returning.stages);
}

/** Units but the last one, whose bytes count for the device of the first. */
export class WithReturningHead implements Ranges {
  readonly units: readonly Unit[];
  /** The head's bytes beside the shared table's. */
  readonly #own: number;

  private constructor(readonly base: Ranges) {
    const count = base.units.length;
    this.units = base.units.slice(0, -1);
    this.#own = base.bytes(0, count) - base.bytes(0, count - 1);
  }

  /** undefined where the last unit shares no weight with the first, or nothing stands between them. */
  static of(ranges: Ranges): WithReturningHead | undefined {
    const [first, last] = [ranges.units[0], ranges.units.at(-1)];
    if (first === undefined || last === undefined || ranges.units.length < 3) return undefined;
    return last.weights.some((id) => first.weights.includes(id)) ? new WithReturningHead(ranges) : undefined;
  }

  bytes(from: number, to: number): number {
    return this.base.bytes(from, to) + (from === 0 && to > 0 ? this.#own : 0);
  }

  /** The device's times with the head's in them: for the first stage, and a hop back unless it is the only one. */
  device(device: PlacementDevice): PlacementDevice {
    const head = this.units.length;
    const headMs = device.stageMs(head, head + 1);
    const stageMs = (from: number, to: number): number =>
      device.stageMs(from, to) + (from > 0 ? 0 : headMs + (to < head ? device.hopMs : 0));
    return { ...device, stageMs };
  }

  /** The stages with the head's visit at the end. */
  stages(stages: readonly Stage[]): Stage[] {
    const head = this.units.length;
    return [...stages, { device: (stages[0] as Stage).device, from: head, to: head + 1 }];
  }
}
