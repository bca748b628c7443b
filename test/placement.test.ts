/**
 * Which device takes which units: the partitions of the strategies and the placement behind `auto`, against brute force.
 * What a plan counts in bytes is planner.test.ts. Over 400 lines: all cases share the made problems and the brute force.
 */
import fc from 'fast-check';
import {
  buildModel,
  formatMs,
  formatPlanTable,
  InsufficientMemoryError,
  parseBytes,
  planRecorded,
  recordModel,
} from 'metashard';
import { describe, expect, it } from 'vitest';
import {
  balancedLow0Partition,
  balancedPartition,
  type Ranges,
  sequentialPartition,
  type Unit,
} from '../packages/dispatch/dist/partition.js';
import { bestPlacement, type PlacementDevice, type Stage } from '../packages/dispatch/dist/placement.js';
import { bestTiedPlacement } from '../packages/dispatch/dist/tied-head.js';
import { BLOOM_176B, gpus } from './planner-subjects.js';

class MadeRanges implements Ranges {
  readonly units: readonly Unit[];
  constructor(readonly sizes: readonly number[]) {
    this.units = sizes.map((weightsBytes, i) => ({
      module: `${i}`,
      ops: [],
      weights: [],
      weightsBytes,
      kvCacheBytes: 0,
      activationsBytes: 0,
      scratchBytes: 0,
    }));
  }
  bytes(from: number, to: number): number {
    return this.sizes.slice(from, to).reduce((a, b) => a + b, 0);
  }
}

/** The last unit is a head: one byte of its own and the table of the first unit. */
class TiedRanges extends MadeRanges {
  override readonly units: readonly Unit[];
  constructor(sizes: readonly number[]) {
    super(sizes);
    const tied = [0, sizes.length - 1];
    this.units = new MadeRanges(sizes).units.map((unit, i) => ({ ...unit, weights: tied.includes(i) ? [7] : [] }));
  }
  override bytes(from: number, to: number): number {
    return super.bytes(from, to) - (from === 0 && to === this.sizes.length ? (this.sizes[0] as number) : 0);
  }
}

/** Every way to cut n units into contiguous runs for d devices. */
function* allEnds(units: number, devices: number, from = 0): Generator<number[]> {
  if (devices === 1) {
    yield [units];
    return;
  }
  for (let end = from; end <= units; end++) for (const rest of allEnds(units, devices - 1, end)) yield [end, ...rest];
}

describe('partitions', () => {
  const problems = fc.record({
    sizes: fc.array(fc.integer({ min: 1, max: 20 }), { minLength: 1, maxLength: 8 }),
    capacities: fc.array(fc.integer({ min: 0, max: 60 }), { minLength: 1, maxLength: 4 }),
  });
  const shares = (ranges: Ranges, ends: readonly number[]): number[] =>
    ends.map((end, d) => ranges.bytes(d === 0 ? 0 : (ends[d - 1] as number), end));
  const fits = (ranges: Ranges, ends: readonly number[], capacities: readonly number[]): boolean =>
    shares(ranges, ends).every((share, d) => share <= (capacities[d] as number));

  it('balanced is the optimum that brute force finds, with the fewest devices', () => {
    fc.assert(
      fc.property(problems, ({ sizes, capacities }) => {
        const ranges = new MadeRanges(sizes);
        let best = Number.POSITIVE_INFINITY;
        let fewest = Number.POSITIVE_INFINITY;
        for (const ends of allEnds(sizes.length, capacities.length)) {
          if (!fits(ranges, ends, capacities)) continue;
          const own = shares(ranges, ends);
          const [largest, used] = [Math.max(...own), own.filter((share) => share > 0).length];
          if (largest < best || (largest === best && used < fewest)) [best, fewest] = [largest, used];
        }
        const ends = balancedPartition({ ranges, capacities });
        if (ends === undefined) return best === Number.POSITIVE_INFINITY;
        const own = shares(ranges, ends);
        return (
          fits(ranges, ends, capacities) &&
          Math.max(...own) === best &&
          own.filter((share) => share > 0).length === fewest
        );
      }),
      { numRuns: 500 },
    );
  });

  it('sequential and balanced_low_0 cover all units within every capacity', () => {
    fc.assert(
      fc.property(problems, ({ sizes, capacities }) => {
        const ranges = new MadeRanges(sizes);
        for (const solve of [sequentialPartition, balancedLow0Partition]) {
          const ends = solve({ ranges, capacities });
          if (ends === undefined) continue;
          expect(ends.at(-1)).toBe(sizes.length);
          expect(fits(ranges, ends, capacities)).toBe(true);
        }
      }),
    );
  });
});

/** Whether `op` may write its output exactly where `input` lay. */
describe('the placement behind auto', () => {
  const problems = fc.record({
    sizes: fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 6 }),
    devices: fc.array(
      fc.record({
        capacity: fc.integer({ min: 3, max: 30 }),
        speed: fc.integer({ min: 1, max: 3 }),
        hop: fc.integer({ min: 0, max: 4 }),
      }),
      {
        minLength: 1,
        maxLength: 4,
      },
    ),
    objective: fc.constantFrom('latency' as const, 'throughput' as const),
  });

  /** Time, devices used, largest share, then the devices in order: what `bestPlacement` compares by. */
  interface Found {
    stages: readonly Stage[];
    ms: number;
    largest: number;
  }
  const isBetter = (a: Found, b: Found): boolean => {
    if (Math.abs(a.ms - b.ms) > 1e-9) return a.ms < b.ms;
    if (a.stages.length !== b.stages.length) return a.stages.length < b.stages.length;
    if (a.largest !== b.largest) return a.largest < b.largest;
    const at = a.stages.findIndex(({ device }, i) => device !== b.stages[i]?.device);
    return at >= 0 && (a.stages[at]?.device as number) < (b.stages[at]?.device as number);
  };

  /** Every placement of units over every order of devices; `timesOf` gives its stages' times. */
  function bruteForce(
    ranges: Ranges,
    capacities: readonly number[],
    measure: (stages: readonly Stage[]) => { ms: number; largest: number } | undefined,
  ): Found | undefined {
    let best: Found | undefined;
    const search = (stages: readonly Stage[], placed: number): void => {
      const found = placed === ranges.units.length ? measure(stages) : undefined;
      if (found !== undefined && (best === undefined || isBetter({ stages, ...found }, best)))
        best = { stages, ...found };
      for (const [device, capacity] of capacities.entries()) {
        if (stages.some((stage) => stage.device === device)) continue;
        for (let to = placed + 1; to <= ranges.units.length && ranges.bytes(placed, to) <= capacity; to++) {
          search([...stages, { device, from: placed, to }], to);
        }
      }
    };
    search([], 0);
    return best;
  }

  it('is what brute force finds over every order of devices, and of equals the one promised', () => {
    fc.assert(
      fc.property(problems, ({ sizes, devices: made, objective }) => {
        const ranges = new MadeRanges(sizes);
        const devices = made.map(({ capacity, speed, hop }) => ({
          capacity,
          hopMs: hop,
          key: `${capacity},${speed},${hop}`,
          stageMs: (from: number, to: number) => ranges.bytes(from, to) / speed,
        }));
        const measure = (stages: readonly Stage[]) => {
          const times = stages.map(
            ({ device, from, to }, i) =>
              (devices[device]?.stageMs(from, to) as number) + (i > 0 ? (devices[device]?.hopMs as number) : 0),
          );
          return {
            ms: objective === 'latency' ? times.reduce((a, b) => a + b, 0) : Math.max(...times),
            largest: Math.max(...stages.map(({ from, to }) => ranges.bytes(from, to))),
          };
        };
        const want = bruteForce(
          ranges,
          devices.map(({ capacity }) => capacity),
          measure,
        );
        const found = bestPlacement({ ranges, devices, objective });
        if (found === undefined || want === undefined) return found === want;
        expect(found.stages.at(-1)?.to).toBe(sizes.length);
        for (const [i, { device, from, to }] of found.stages.entries()) {
          expect(from).toBe(found.stages[i - 1]?.to ?? 0);
          expect(ranges.bytes(from, to)).toBeLessThanOrEqual(devices[device]?.capacity as number);
        }
        expect(found).toMatchObject(measure(found.stages));
        return !isBetter(want, found) && !isBetter(found, want);
      }),
      { numRuns: 1000 },
    );
  });

  it('keeps a tied head whole or copies its table, whichever brute force finds better', () => {
    fc.assert(
      fc.property(problems, fc.integer({ min: 1, max: 9 }), ({ sizes, devices: made, objective }, table) => {
        const own = [table, ...sizes, table + 1];
        const ranges = new TiedRanges(own);
        const devices = made.map(
          ({ capacity, speed, hop }): PlacementDevice => ({
            capacity: capacity + table,
            hopMs: hop,
            key: `${capacity},${speed},${hop}`,
            stageMs: (from, to) => own.slice(from, to).reduce((a, b) => a + b, 0) / speed,
          }),
        );
        const ends = { first: 0, head: own.length - 1 };
        const stagesWith = (stages: readonly Stage[], head: Stage): readonly Stage[] => [...stages, head];
        const measure = (stages: readonly Stage[]) => {
          const [times, shares] = [new Map<number, number>(), new Map<number, number>()];
          for (const [i, { device, from, to }] of stages.entries()) {
            const one = devices[device] as PlacementDevice;
            const hop = i > 0 && stages[i - 1]?.device !== device ? one.hopMs : 0;
            times.set(device, (times.get(device) ?? 0) + one.stageMs(from, to) + hop);
            const isReturn = from === ends.head && device === stages[0]?.device;
            shares.set(device, (shares.get(device) ?? 0) + (isReturn ? 1 : ranges.bytes(from, to)));
          }
          for (const [device, bytes] of shares) if (bytes > (devices[device]?.capacity as number)) return undefined;
          const all = [...times.values()];
          return {
            ms: objective === 'latency' ? all.reduce((a, b) => a + b, 0) : Math.max(...all),
            largest: Math.max(...shares.values()),
          };
        };
        const capacities = devices.map(({ capacity }) => capacity);
        const copied = bruteForce(ranges, capacities, measure);
        const body = new MadeRanges(own.slice(0, -1));
        const returned = bruteForce(body, capacities, (stages) =>
          measure(stagesWith(stages, { device: stages[0]?.device as number, from: ends.head, to: own.length })),
        );
        const want = copied === undefined || (returned !== undefined && isBetter(returned, copied)) ? returned : copied;
        const found = bestTiedPlacement({ ranges, devices, objective });
        if (found === undefined || want === undefined) return found === want;
        const got = measure(found);
        expect(Math.abs((got?.ms as number) - want.ms)).toBeLessThan(1e-9);
        return new Set(found.map(({ device }) => device)).size === want.stages.length && got?.largest === want.largest;
      }),
      { numRuns: 1000 },
    );
  });

  it('takes devices in the order given where there are more than four classes of them', () => {
    const ranges = new MadeRanges([4, 4, 4, 4, 4]);
    const devices = [1, 2, 3, 4, 5].map((speed) => ({
      capacity: 8,
      hopMs: 0.1,
      key: `${speed}`,
      stageMs: (from: number, to: number) => ranges.bytes(from, to) / speed,
    }));
    expect(bestPlacement({ ranges, devices, objective: 'latency' })?.stages).toEqual([
      { device: 2, from: 0, to: 1 },
      { device: 3, from: 1, to: 3 },
      { device: 4, from: 3, to: 5 },
    ]);
  });

  it('an int8 cache is refused where attention would run on a GPU, and planned on the CPU', () => {
    const { model } = buildModel({ ...BLOOM_176B, hidden_size: 1024, n_head: 16, n_layer: 2 });
    const recorded = recordModel(model, { maxSeqLen: 256, kvCacheDtype: 'int8', attention: 'bfloat16' });
    const budget = (name: string) => ({ name, emulated: false, budgetBytes: 2 ** 33, reserveBytes: 0 });
    const plan = (name: string) => planRecorded(recorded, [budget(name)], { deviceMap: 'auto', model: 'm' }).plan;
    expect(() => plan('cuda:0')).toThrow(
      'kv_cache_dtype: expected float32, float16 or bfloat16 for attention on cuda:0, got int8',
    );
    expect(plan('cpu:0').devices[0]?.kvCacheBytes).toBe(2 * 2 * 16 * 256 * (64 + 4));
    const attention = recorded.program.ops.filter(({ op }) => op === 'attention');
    expect(attention.map(({ attributes }) => attributes[4])).toEqual([1, 1]);
  });

  it('fills one device when the model fits it, the fewest when not, and prefers the fast ones in any order', () => {
    const { model } = buildModel({ ...BLOOM_176B, hidden_size: 1024, n_head: 16, n_layer: 24 });
    const recorded = recordModel(model, { maxSeqLen: 256 });
    const plan = (names: [string, string][]) =>
      planRecorded(
        recorded,
        names.map(([name, size]) => ({ name, emulated: false, budgetBytes: parseBytes(size), reserveBytes: 0 })),
        { deviceMap: 'auto', model: 'm' },
      ).plan.segments.map((segment) => segment.device);
    expect(
      plan([
        ['cuda:0', '8GiB'],
        ['cuda:1', '8GiB'],
      ]),
    ).toEqual(['cuda:0']);
    expect(
      plan([
        ['cuda:0', '950MiB'],
        ['cuda:1', '950MiB'],
        ['cuda:2', '950MiB'],
      ]),
    ).toEqual(['cuda:0', 'cuda:1']);
    expect(
      plan([
        ['cpu:0', '8GiB'],
        ['cuda:0', '8GiB'],
      ]),
    ).toEqual(['cuda:0']);
    expect(
      new Set(
        plan([
          ['cuda:0', '950MiB'],
          ['cpu:0', '8GiB'],
        ]),
      ),
    ).toEqual(new Set(['cuda:0', 'cpu:0']));
  });

  it('copies the table of a tied head where that fits, and has the head return to it where not', () => {
    const tiny = { ...BLOOM_176B, hidden_size: 256, n_head: 4, n_layer: 8, vocab_size: 8000 };
    const recorded = recordModel(buildModel(tiny).model, { maxSeqLen: 32 });
    for (const deviceMap of ['auto', 'balanced', 'sequential', 'balanced_low_0'] as const) {
      const plan = (MiB: number) => planRecorded(recorded, gpus(2, MiB * 2 ** 20), { deviceMap, model: 'm' }).plan;
      const isCopied = (MiB: number): boolean => plan(MiB).copies.length > 0;
      const fits = (MiB: number): boolean => {
        try {
          return plan(MiB) !== undefined;
        } catch {
          return false;
        }
      };
      const least = Array.from({ length: 60 }, (_, i) => i + 1).find(fits) as number;
      expect(isCopied(least), `${deviceMap} in ${least} MiB`).toBe(false);
      const { segments, devices } = plan(least);
      expect(segments[0]?.device).toBe(segments.at(-1)?.device);
      expect(segments.at(-1)?.modules).toContain('lm_head');
      for (const { freeBytes } of devices) expect(freeBytes).toBeGreaterThanOrEqual(0);
      if (deviceMap !== 'balanced_low_0') expect(isCopied(least + 3), deviceMap).toBe(true);
    }
  });

  it('keeps a large table of embeddings, of which a token reads a row, off the GPU where room is short', () => {
    const tiny = { ...BLOOM_176B, hidden_size: 256, n_head: 4, n_layer: 8, vocab_size: 20_000 };
    const recorded = recordModel(buildModel({ ...tiny, tie_word_embeddings: false }).model, { maxSeqLen: 32 });
    const budgets = (MiB: number) => [
      ...gpus(1, MiB * 2 ** 20),
      { name: 'cpu:0', emulated: false, budgetBytes: 2 ** 30, reserveBytes: 0 },
    ];
    const all = planRecorded(recorded, gpus(1, 2 ** 30), { deviceMap: 'auto', model: 'm' }).plan.devices[0];
    const MiB = Math.ceil((2 ** 30 - (all?.freeBytes as number)) / 2 ** 20);
    const short = planRecorded(recorded, budgets(MiB - 8), { deviceMap: 'auto', model: 'm' }).plan;
    expect(short.deviceMap).toMatchObject({ 'transformer.word_embeddings': 'cpu:0', lm_head: 'cuda:0' });
    expect(short.segments.map(({ device }) => device)).toEqual(['cpu:0', 'cuda:0']);
  });

  it('spills to disk only where nothing else fits, and says what that costs', () => {
    const tiny = { ...BLOOM_176B, hidden_size: 128, n_head: 4, n_layer: 16, vocab_size: 500 };
    const recorded = recordModel(buildModel(tiny).model, { maxSeqLen: 32 });
    const disk = { name: 'disk', emulated: false, budgetBytes: Number.MAX_SAFE_INTEGER, reserveBytes: 0 };
    const cpus = (bytes: number) => gpus(2, bytes).map((one, i) => ({ ...one, name: `cpu:${i}` }));
    let spilled = 0;
    for (const deviceMap of ['auto', 'balanced', 'sequential'] as const) {
      for (let bytes = 2 ** 20; bytes <= 8 * 2 ** 20; bytes += 2 ** 17) {
        const plan = (more: readonly (typeof disk)[]) =>
          planRecorded(recorded, [...cpus(bytes), ...more], { deviceMap, model: 'm' }).plan;
        let resident: unknown;
        try {
          resident = plan([]).deviceMap;
        } catch (error) {
          expect(error).toBeInstanceOf(InsufficientMemoryError);
        }
        if (resident !== undefined) expect(plan([disk]).deviceMap).toEqual(resident);
        else {
          try {
            const { offloaded, devices, ...rest } = plan([disk]);
            expect(offloaded.length).toBeGreaterThan(0);
            const ms = devices.find(({ name }) => name === 'disk')?.expectedMs as number;
            expect(formatPlanTable({ offloaded, devices, ...rest })).toContain(
              `, ${formatMs(ms)} where none of it is in memory (datasheet figures)`,
            );
            spilled++;
          } catch (error) {
            expect(error).toBeInstanceOf(InsufficientMemoryError);
          }
        }
      }
    }
    expect(spilled).toBeGreaterThan(3);
  });

  it('for throughput makes the slowest stage fast, for latency the request', () => {
    const tiny = { ...BLOOM_176B, hidden_size: 256, n_head: 4, n_layer: 12, vocab_size: 500 };
    const recorded = recordModel(buildModel(tiny).model, { maxSeqLen: 32 });
    const costs = {
      source: 'measured' as const,
      diskBandwidth: 1e9,
      of: () => ({ bandwidth: 1e9, rate: 1e12, hopMs: 1e-3 }),
    };
    const plan = (objective: 'latency' | 'throughput') =>
      planRecorded(recorded, gpus(4, 2 ** 30), { deviceMap: 'auto', model: 'm', objective, costs }).plan;
    expect(plan('latency').segments.map(({ device }) => device)).toEqual(['cuda:0']);
    const spread = plan('throughput');
    expect(spread.segments).toHaveLength(4);
    expect(spread.objective).toBe('throughput');
    const slowest = ({ devices }: typeof spread) => Math.max(...devices.map(({ expectedMs }) => expectedMs));
    expect(slowest(spread)).toBeLessThan(slowest(plan('latency')) / 3);
    expect(formatPlanTable(spread)).toMatch(/^m: device_map auto for throughput, /);
  });

  it('weighs what is expected: the KV cache of more sequences, the operations of longer prompts', () => {
    const tiny = { ...BLOOM_176B, hidden_size: 256, n_head: 4, n_layer: 2, vocab_size: 500 };
    const recorded = recordModel(buildModel(tiny).model, { maxSeqLen: 256, maxBatchSize: 8 });
    const ms = (expectedUse: { sequences?: number }) =>
      planRecorded(recorded, gpus(1, 2 ** 30), { deviceMap: 'auto', model: 'm', expectedUse }).plan.devices[0]
        ?.expectedMs as number;
    expect(ms({})).toBe(ms({ sequences: 8 }));
    expect(ms({ sequences: 1 })).toBeLessThan(ms({}));
    // A slow processor with fast memory takes decode steps, a fast one with slow memory prompts.
    const costs = {
      source: 'datasheet' as const,
      diskBandwidth: 1e9,
      of: (name: string) =>
        name === 'cuda:0' ? { bandwidth: 2e12, rate: 1e13, hopMs: 1e-3 } : { bandwidth: 1e12, rate: 1e15, hopMs: 1e-3 },
    };
    const chosen = (promptTokens: number, newTokens: number) =>
      planRecorded(recorded, gpus(2, 2 ** 30), {
        deviceMap: 'auto',
        model: 'm',
        costs,
        expectedUse: { promptTokens, newTokens, sequences: 1 },
      }).plan.segments.map(({ device }) => device);
    expect(chosen(1, 1000)).toEqual(['cuda:0']);
    expect(chosen(4000, 1)).toEqual(['cuda:1']);
  });
});
