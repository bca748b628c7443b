/**
 * Planning: pure, from a config alone. BLOOM-176B over eight devices, refusals, explicit maps, and planned bytes that follow
 * the program. Strategies against brute force are placement.test.ts.
 */
import fc from 'fast-check';
import {
  buildModel,
  DeviceMapError,
  F,
  InsufficientMemoryError,
  initEmptyWeights,
  loadModel,
  nn,
  opSignature,
  type Program,
  type ProgramOp,
  planDeviceMap,
  planRecorded,
  recordModel,
  replaceLinear,
  type Tensor,
} from 'metashard';
import { describe, expect, it } from 'vitest';
import { planArena } from '../packages/dispatch/dist/memory-plan.js';
import { ProgramFacts } from '../packages/dispatch/dist/program-facts.js';
import { SHIPPED } from './golden-models.js';
import { BLOOM_176B, gpus } from './planner-subjects.js';

describe('BLOOM-176B', () => {
  const { model } = buildModel(BLOOM_176B);
  replaceLinear(model);
  const recorded = recordModel(model, { maxSeqLen: 2048 });

  it('has exactly 176,247,271,424 parameters', () => {
    expect(
      buildModel(BLOOM_176B)
        .model.parameters()
        .reduce((sum, one) => sum + one.numel, 0),
    ).toBe(176_247_271_424);
  });

  it('is planned over eight devices with every byte counted', () => {
    const { plan } = planRecorded(recorded, gpus(8, 40 * 2 ** 30), { deviceMap: 'balanced', model: 'bloom' });
    const sum = (pick: (device: (typeof plan.devices)[number]) => number): number =>
      plan.devices.reduce((total, device) => total + pick(device), 0);
    // 2 · 70 layers · 14336 · 4 bytes (float32 cache) for each of 2048 tokens.
    expect(sum((device) => device.kvCacheBytes)).toBe(2 * 70 * 14336 * 4 * 2048);
    // int8 linears with float32 scales and int32 row sums, the rest in bfloat16, and the tied head once more on the last device.
    const linears = 70 * 12 * 14336 * 14336;
    const rows = 70 * (3 + 1 + 4 + 1) * 14336;
    const others = 250880 * 14336 * 2 + 250880 * 14336 * 2 + 70 * 13 * 14336 * 2 + 4 * 14336 * 2;
    const exact = linears + rows * 8 + others;
    const total = sum((device) => device.weightsBytes);
    expect(total).toBeGreaterThanOrEqual(exact);
    expect(total).toBeLessThan(exact + 70 * 12 * 64 + 112 * 64 + 4096);
    expect(plan.copies).toEqual([
      expect.objectContaining({ tensor: 'transformer.word_embeddings.weight', device: 'cuda:7' }),
    ]);
    expect(plan.segments).toHaveLength(8);
    for (const device of plan.devices) expect(device.freeBytes).toBeGreaterThan(0);
  });

  it('says which device is short and by how much when it does not fit', () => {
    const plan = () => planRecorded(recorded, gpus(4, 40 * 2 ** 30), { deviceMap: 'balanced', model: 'bloom' });
    expect(plan).toThrow(InsufficientMemoryError);
    expect(plan).toThrow(/cuda:\d needs \d+\.\d GiB, 40\.0 GiB available/);
  });

  it.each([1, 4, 8])('needs no more over %i devices than the fullest of them takes', (count) => {
    for (const deviceMap of ['auto', 'balanced', 'sequential'] as const) {
      const plan = (bytes: number) => planRecorded(recorded, gpus(count, bytes), { deviceMap, model: 'bloom' }).plan;
      let [tooLittle, enough] = [0, 256 * 2 ** 30];
      while (enough - tooLittle > 2 ** 20) {
        const middle = Math.floor((tooLittle + enough) / 2);
        try {
          plan(middle);
          enough = middle;
        } catch (error) {
          expect(error).toBeInstanceOf(InsufficientMemoryError);
          tooLittle = middle;
        }
      }
      const least = Math.min(...plan(enough).devices.map(({ freeBytes }) => freeBytes));
      expect(least, deviceMap).toBeGreaterThanOrEqual(0);
      expect(least, deviceMap).toBeLessThan(2 ** 21);
    }
  });

  it('gives the times of building, recording and planning (reported, not asserted)', () => {
    const time = (run: () => unknown): number => {
      const runs = Array.from({ length: 20 }, () => {
        const start = performance.now();
        run();
        return performance.now() - start;
      });
      return runs.sort((a, b) => a - b)[10] as number;
    };
    const build = time(() => buildModel(BLOOM_176B));
    const plan = time(() => planRecorded(recorded, gpus(8, 40 * 2 ** 30), { deviceMap: 'balanced', model: 'bloom' }));
    console.log(
      `BLOOM-176B: built in ${build.toFixed(2)} ms, planned over 8 devices in ${plan.toFixed(2)} ms (medians of 20)`,
    );
    expect(build + plan).toBeGreaterThan(0);
  });
});

describe('a refusal', () => {
  const config = { ...BLOOM_176B, hidden_size: 128, n_head: 4, n_layer: 8, vocab_size: 1000 };
  const { model } = buildModel(config);
  const refused = (run: () => unknown): InsufficientMemoryError => {
    try {
      run();
    } catch (error) {
      expect(error).toBeInstanceOf(InsufficientMemoryError);
      return error as InsufficientMemoryError;
    }
    throw new Error('expected a refusal, got a plan');
  };
  const MiB = 2 ** 20;

  it('names the device that binds and the memory that would do, by any strategy over any devices', () => {
    const recorded = recordModel(model, { maxSeqLen: 128 });
    const sizes = fc.array(fc.integer({ min: 0, max: 3 * MiB }), { minLength: 1, maxLength: 4 });
    const strategy = fc.constantFrom('auto' as const, 'balanced' as const, 'sequential' as const);
    let refusals = 0;
    fc.assert(
      fc.property(sizes, strategy, fc.boolean(), (budgets, deviceMap, hasDisk) => {
        const devices = (extra: number) => [
          ...budgets.map((bytes, i) => ({
            name: i < 2 ? `cuda:${i}` : `cpu:${i - 2}`,
            emulated: false,
            budgetBytes: bytes + extra,
            reserveBytes: 0,
          })),
          ...(hasDisk
            ? [{ name: 'disk', emulated: false, budgetBytes: Number.MAX_SAFE_INTEGER, reserveBytes: 0 }]
            : []),
        ];
        const plan = (extra: number) => planRecorded(recorded, devices(extra), { deviceMap, model: 'm' });
        let error: InsufficientMemoryError;
        try {
          plan(0);
          return;
        } catch (thrown) {
          error = thrown as InsufficientMemoryError;
        }
        expect(error, String(error)).toBeInstanceOf(InsufficientMemoryError);
        refusals++;
        const { device, neededBytes, availableBytes, extraBytes } = error.details as Record<string, number>;
        const binding = devices(0).find(({ name }) => name === String(device));
        expect([availableBytes, neededBytes]).toEqual([
          binding?.budgetBytes,
          (availableBytes as number) + (extraBytes as number),
        ]);
        expect(plan(extraBytes as number).plan.devices.length).toBeGreaterThan(0);
        expect(() => plan((extraBytes as number) - MiB - 1)).toThrow(InsufficientMemoryError);
      }),
      { numRuns: 60 },
    );
    expect(refusals).toBeGreaterThan(10);
  });

  it('says which batch and context would fit: a shorter context, fewer sequences, or one sequence', () => {
    const plan = (MiB: number, step: { maxBatchSize: number; maxSeqLen: number }) =>
      planDeviceMap(model, { devices: ['cpu:0'], maxMemory: { cpu: MiB * 2 ** 20 }, ...step });
    for (const [size, asked] of [
      [12, { maxBatchSize: 4, maxSeqLen: 1024 }],
      [8, { maxBatchSize: 3, maxSeqLen: 512 }],
      [20, { maxBatchSize: 1, maxSeqLen: 2048 }],
      [5, { maxBatchSize: 60, maxSeqLen: 64 }],
    ] as const) {
      const { details, hint } = refused(() => plan(size, asked));
      const fits = details.fits as { maxBatchSize: number; maxSeqLen: number }[];
      expect(fits.length, `${size} MiB`).toBeGreaterThan(0);
      for (const step of fits) {
        expect(hint).toContain(`${step.maxBatchSize} × ${step.maxSeqLen}`);
        expect(plan(size, step).maxSeqLen).toBe(step.maxSeqLen);
        const more =
          step.maxSeqLen < asked.maxSeqLen
            ? { ...step, maxSeqLen: step.maxSeqLen + 16 }
            : { ...step, maxBatchSize: step.maxBatchSize + 1 };
        refused(() => plan(size, more));
      }
    }
  });

  it('says so where nothing is small enough, and what is missing then', () => {
    const plan = (bytes: number) =>
      planDeviceMap(model, {
        devices: ['cpu:0', 'cpu:1'],
        maxMemory: { 'cpu:0': bytes, 'cpu:1': bytes },
        maxSeqLen: 64,
      });
    const { details, hint } = refused(() => plan(MiB / 2));
    expect(details.fits).toEqual([]);
    expect(hint).toMatch(
      /^no smaller batch or context fits; offer [\d.]+ MiB more on each device \(max_memory\), add a device, or set load_in_8bit$/,
    );
    expect(plan(MiB / 2 + (details.extraBytes as number)).segments.length).toBeGreaterThan(0);
  });

  it('holds for maps of the user, too', () => {
    const plan = (bytes: number, maxSeqLen: number) =>
      planDeviceMap(model, {
        devices: ['cpu:0', 'cpu:1'],
        maxMemory: { 'cpu:0': bytes, 'cpu:1': 10 * MiB },
        deviceMap: { '': 'cpu:0', 'transformer.h.7': 'cpu:1' },
        maxSeqLen,
      });
    const { message, details } = refused(() => plan(6 * MiB, 1024));
    expect(message).toMatch(/^device map does not fit: cpu:0 needs [\d.]+ MiB, 6\.0 MiB available$/);
    const [step] = details.fits as { maxSeqLen: number }[];
    expect(plan(6 * MiB, step?.maxSeqLen as number).strategy).toBe('explicit');
    expect(plan(6 * MiB + (details.extraBytes as number), 1024).devices[0]?.freeBytes).toBe(0);
  });
});

/** Ranges over made-up units with bytes and ties. */
function endsInPlace(input: number, op: ProgramOp, made: { from: number; to: number }, other: typeof made): boolean {
  const same = made.from === other.from && made.to === other.to;
  return same && opSignature(op.op).inPlace === true && op.inputs.includes(input);
}

describe('arena', () => {
  it('never lets two tensors that live at once overlap, but for an op in place', () => {
    const { model } = buildModel({ ...BLOOM_176B, hidden_size: 64, n_head: 4, n_layer: 3, vocab_size: 100 });
    const { program } = recordModel(model, { maxSeqLen: 32 });
    const facts = ProgramFacts.of(program, { tokens: 32, sequences: 1, outputs: 8 });
    const { offsets, bytes } = planArena(facts, program.ops, new Set());
    const last = new Map<number, number>();
    for (const [index, op] of program.ops.entries())
      for (const id of [...op.inputs, ...op.outputs]) if (id >= 0) last.set(facts.storageOf(id), index);
    const live: { id: number; from: number; to: number; end: number }[] = [];
    for (const [index, op] of program.ops.entries()) {
      for (const id of op.outputs) {
        const from = offsets.get(id) as number;
        const made = { id, from, to: from + facts.bytesOf(id), end: last.get(id) as number };
        expect(made.to).toBeLessThanOrEqual(bytes);
        for (const other of live)
          if (other.end > index || (other.end === index && !endsInPlace(other.id, op, made, other)))
            expect(made.from >= other.to || made.to <= other.from, `${id} over ${other.id}`).toBe(true);
        live.push(made);
      }
    }
  });
});

describe('logits in passes', () => {
  it('leave alone what the next pass reads', () => {
    for (const vocab_size of [100, 1000, 5000, 50_000]) {
      const config = { model_type: 'llama', hidden_size: 64, num_attention_heads: 4, intermediate_size: 128 };
      const { model } = buildModel({ ...config, vocab_size, num_hidden_layers: 2 });
      const recorded = recordModel(model, { maxSeqLen: 512 });
      const { memory, segments } = planRecorded(recorded, gpus(1, 2 ** 30), { deviceMap: 'auto', model: 'm' });
      const facts = ProgramFacts.of(recorded.program, { tokens: 512, sequences: 1, outputs: 64 });
      const offsets = memory.get('cuda:0')?.arenas.get(0)?.offsets;
      const place = (id: number) => {
        const from = offsets?.get(id) as number;
        return [from, from + facts.bytesOf(id)] as const;
      };
      const ops = segments[0]?.ops ?? [];
      const at = ops.findIndex((op) => op.op === 'select_rows');
      const [from, to] = place(facts.storageOf(ops[at]?.inputs[0] as number));
      for (const op of ops.slice(at)) {
        for (const id of op.outputs) {
          const [start, end] = place(id);
          expect(end <= from || start >= to, `${op.op}, vocabulary ${vocab_size}`).toBe(true);
        }
      }
    }
  });
});

class Doubled extends nn.Module {
  readonly linear = new nn.Linear(64, 64);
  constructor(readonly withExtra: boolean) {
    super();
  }
  forward(x: Tensor): Tensor {
    const y = this.linear.forward(x);
    return this.withExtra ? F.mul(F.gelu(y), F.silu(y)) : F.gelu(y);
  }
}

describe('planned bytes follow the program', () => {
  it('an op added to a module changes the activations, without a word in the planner', () => {
    const planned = (withExtra: boolean): number =>
      planDeviceMap(
        initEmptyWeights(() => new Doubled(withExtra)),
        { devices: ['cpu:0'], inputs: { x: { shape: ['tokens', 64] } }, maxSeqLen: 100 },
      ).devices[0]?.activationsBytes as number;
    expect(planned(true)).toBe(planned(false) + 100 * 64 * 4);
  });

  it('a longer context, a larger batch and 8 bits change what they should', () => {
    const config = { ...BLOOM_176B, hidden_size: 256, n_head: 8, n_layer: 4, vocab_size: 1000 };
    const planned = (int8: boolean, maxSeqLen: number, maxBatchSize: number) => {
      const { model } = buildModel(config);
      if (int8) replaceLinear(model);
      return planDeviceMap(model, { devices: ['cpu:0'], maxSeqLen, maxBatchSize }).devices[0] as {
        kvCacheBytes: number;
        weightsBytes: number;
      };
    };
    expect(planned(false, 512, 1).kvCacheBytes).toBe(2 * planned(false, 256, 1).kvCacheBytes);
    expect(planned(false, 256, 3).kvCacheBytes).toBe(3 * planned(false, 256, 1).kvCacheBytes);
    expect(planned(true, 256, 1).weightsBytes).toBeLessThan(0.65 * planned(false, 256, 1).weightsBytes);
  });
});

describe('explicit maps', () => {
  const { model } = buildModel({ ...BLOOM_176B, hidden_size: 64, n_head: 4, n_layer: 11, vocab_size: 100 });
  const plan = (deviceMap: Record<string, string | { device: string; execute_on: string }>) =>
    planDeviceMap(model, { devices: ['cpu:0', 'cpu:1'], deviceMap, maxSeqLen: 32 });

  it('the longest prefix wins, by whole components', () => {
    const { segments } = plan({ '': 'cpu:0', 'transformer.h.1': 'cpu:1' });
    expect(
      segments
        .filter((one) => one.device === 'cpu:1')
        .flatMap((one) => one.modules)
        .every((path) => /^transformer\.h\.1(\.|$)/.test(path)),
    ).toBe(true);
    expect(segments.map((one) => one.device)).toEqual(['cpu:0', 'cpu:1', 'cpu:0']);
  });

  it('names what is not covered', () => {
    expect(() => plan({ 'transformer.word_embeddings': 'cpu:0' })).toThrow(DeviceMapError);
    expect(() => plan({ 'transformer.word_embeddings': 'cpu:0' })).toThrow(
      /got none for transformer\.word_embeddings_layernorm\.weight/,
    );
  });

  it('the plan is plain JSON and its map plans again to the same segments', async () => {
    const first = planDeviceMap(model, { devices: ['cpu:0', 'cpu:1'], deviceMap: 'balanced', maxSeqLen: 32 });
    expect(JSON.parse(JSON.stringify(first))).toEqual(first);
    expect(plan(first.deviceMap).segments.map((one) => one.device)).toEqual(first.segments.map((one) => one.device));
    const loaded = await loadModel(`${SHIPPED}stories260K`, {
      devices: ['cpu:0', 'cpu:1'],
      deviceMap: 'balanced',
      maxSeqLen: 32,
    });
    expect(Object.values(loaded.deviceMap)).toContain('cpu:1');
    await loaded.dispose();
  });
});

it('a recorded Program survives structured clone and JSON', () => {
  const { program } = recordModel(
    buildModel({ ...BLOOM_176B, hidden_size: 64, n_head: 4, n_layer: 2, vocab_size: 50 }).model,
    { maxSeqLen: 16 },
  );
  expect(structuredClone(program)).toEqual(program);
  expect(JSON.parse(JSON.stringify(program)) as Program).toEqual(program);
});
