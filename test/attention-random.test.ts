/**
 * Attention of every instruction set against the plain reference over random shapes, caches, masks, biases and values,
 * and against itself with other batch mates. The case table (ops-cpu.test.ts) holds what is known to matter; this one
 * looks for what fixed cases miss. METASHARD_TEST_SEED repeats a run.
 */
import { fileURLToPath } from 'node:url';
import { type ContextId, type DType, native } from '@metashard/core';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type HostTensor, hostTensor, hostValues } from './host-tensor.js';
import { type BuiltCase, ints, Random } from './op-case.js';
import { type AttentionShape, attentionCase } from './op-cases-attention.js';
import { checkOpCase, runOpCase } from './run-op-case.js';

const ROUNDS = 30;
const seed = Number(process.env.METASHARD_TEST_SEED ?? Date.now() % 2 ** 31);

const addon = native();
addon.loadBackend('cpu', fileURLToPath(new URL('../packages/cpu/build/Release/metashard_cpu.so', import.meta.url)));
const initial = JSON.parse(addon.describeBackend('cpu')) as { isa: string; missing: Record<string, string> };

let context: ContextId;
beforeAll(() => {
  context = addon.openContext('cpu', 0, 0);
  console.log(`attention-random: METASHARD_TEST_SEED=${seed}`);
});
afterAll(() => {
  addon.configureBackend('cpu', 'isa', initial.isa);
  addon.closeContext(context);
});

/** A shape, and what is done to its values. */
interface RandomCase {
  shape: AttentionShape;
  seed: number;
  /** Powers of 2 that queries and new values are multiplied with: scores of hundreds, values near float32's end. */
  queries: number;
  values: number;
  /** Puts a NaN, or an infinity, into the query of the last token. */
  wildQuery: number | undefined;
}

const few = (most: number) => fc.integer({ min: 0, max: most });
const rarely = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: undefined, freq: 3 });

/** [queries, context] where there is a cache, else as many positions as queries. */
const sequences = (cached: boolean): fc.Arbitrary<[number, number][]> => {
  const prompt = fc.tuple(few(100), few(cached ? 70 : 0)).map(([queries, before]) => [queries, queries + before]);
  const decode = cached
    ? fc.oneof(few(100), few(100), few(1200)).map((before) => [1, 1 + before])
    : fc.constant([1, 1]);
  return fc.array(fc.oneof(prompt, decode) as fc.Arbitrary<[number, number]>, { minLength: 1, maxLength: 3 });
};

const CACHES: (DType | undefined)[] = [undefined, 'float32', 'float16', 'bfloat16', 'int8'];
const headSize = fc.oneof(fc.constantFrom(16, 32, 64, 128), fc.integer({ min: 1, max: 140 }));

const shapes: fc.Arbitrary<AttentionShape> = fc.constantFrom(...CACHES).chain((cache) =>
  fc
    .record({
      heads: fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 9 })),
      D: headSize,
      sequences: sequences(cache !== undefined),
      block: fc.oneof(fc.constant(16), fc.integer({ min: 1, max: 33 })),
      causal: fc.constantFrom(1, 1, 0),
      window: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 150 })),
      softcap: fc.constantFrom(0, 0, 2.5),
      alibi: fc.boolean(),
      fused: fc.boolean(),
      bfloat16: fc.boolean(),
      nan: fc.constantFrom(false, false, true),
    })
    .map(({ heads: [KV, group], ...rest }) => ({ ...rest, KV, N: KV * group, ...(cache && { cache }) })),
);

const cases: fc.Arbitrary<RandomCase> = fc.record({
  shape: shapes,
  seed: few(2 ** 30),
  queries: fc.constantFrom(0, 0, -20, 5),
  values: fc.constantFrom(0, 0, 100, -100),
  wildQuery: rarely(fc.constantFrom(Number.NaN, Number.POSITIVE_INFINITY)),
});

/**
 * The scaled tensors lie on their own; a fused case keeps its values. New values stay of the size of those in the cache
 * where they would leave the result to a cached one of tiny weight: softmax weights below e^-87 are 0 (vectors.h), which
 * shows where scores are in the hundreds, and one far behind the query is off by ALiBi's part of its score (EDGES).
 */
function build({ shape, seed: own, queries, values, wildQuery }: RandomCase): BuiltCase {
  const built = attentionCase(new Random(own), shape);
  if (shape.fused) return built;
  const scaled = (index: number, power: number): void => {
    const tensor = built.inputs[index] as HostTensor;
    const numbers = hostValues(tensor).map((x) => x * 2 ** power);
    if (index === 0 && wildQuery !== undefined) numbers[numbers.length - 1] = wildQuery;
    built.inputs[index] = hostTensor(tensor.dims, numbers);
  };
  scaled(0, shape.bfloat16 ? 0 : queries);
  const leftToCached = shape.cache !== undefined && (queries > 0 || (shape.alibi === true && values < 0));
  scaled(2, shape.cache === 'float16' || leftToCached ? 0 : values);
  return built;
}

/** Scores are sums in float32, so that weights are off by as much of themselves as scores, or ALiBi's part, are in all. */
function tolerance({ shape, queries }: RandomCase): number {
  if (shape.bfloat16) return 2e-2;
  const longest = Math.max(...shape.sequences.map(([, positions]) => positions));
  const ahead = shape.alibi && shape.causal === 0 ? longest / 8 : 0;
  return 3e-6 * (1 + ahead + (queries > 0 && !shape.fused ? 2 ** queries : 0));
}

const plain: AttentionShape = { N: 1, KV: 1, D: 1, sequences: [[40, 40]] };
const EDGES: Record<string, () => BuiltCase> = {
  /** Of 40 keys with scores of up to 3.3e38 the largest takes all the weight: the first, from token 7 on that one. */
  "scores near float32's end": () => {
    const built = attentionCase(new Random(1), plain);
    const { dims } = built.inputs[0] as HostTensor;
    const keys = Array.from({ length: dims[0] as number }, (_, t) => (t === 9 ? 1.1 : 1 - t / 100));
    const queries = keys.map(() => 3e38);
    [built.inputs[0], built.inputs[1]] = [hostTensor(dims, queries), hostTensor(dims, keys)];
    return built;
  },
  /** All scores are -infinity: NaN, as a softmax of them is. */
  'an infinite query over keys of the other sign': () => {
    const built = attentionCase(new Random(3), plain);
    const { dims } = built.inputs[0] as HostTensor;
    const all = (value: number) => hostTensor(dims, Array<number>(dims[0] as number).fill(value));
    [built.inputs[0], built.inputs[1]] = [all(Number.POSITIVE_INFINITY), all(-1)];
    return built;
  },
  /** New values vanish beside the cached one, 66 positions back: ALiBi's -33 of its score is rounded to float32, too. */
  'a cached value far behind the query, under ALiBi': () => {
    const sequences: [number, number][] = [
      [66, 67],
      [1, 1],
    ];
    const shape: AttentionShape = {
      ...plain,
      D: 16,
      sequences,
      cache: 'bfloat16',
      block: 4,
      softcap: 2.5,
      alibi: true,
    };
    const built = attentionCase(new Random(376930879), shape);
    const values = built.inputs[2] as HostTensor;
    built.inputs[2] = hostTensor(
      values.dims,
      hostValues(values).map((x) => x * 2 ** -100),
    );
    return built;
  },
  /** What lies behind the last position a token sees would be far above all it sees. */
  'softcap under steep ALiBi slopes': () => {
    const built = attentionCase(new Random(2), { ...plain, N: 2, D: 16, softcap: 2.5, alibi: true });
    const slopes = built.inputs[9] as HostTensor;
    built.inputs[9] = hostTensor(
      slopes.dims,
      hostValues(slopes).map((slope) => slope * 3000),
    );
    return built;
  },
};

/** The rows of sequence `index`, as bytes, when all others ask for nothing. */
function alone(built: BuiltCase, shape: AttentionShape, index: number): Buffer[] {
  const only = (values: number[]) => values.map((value, s) => (s === index ? value : 0));
  const inputs = [...built.inputs];
  inputs[6] = ints([shape.sequences.length], only(shape.sequences.map(([queries]) => queries)));
  inputs[7] = ints([shape.sequences.length], only(shape.sequences.map(([, positions]) => positions)));
  return rowsOf({ ...built, inputs }, shape)[index] as Buffer[];
}

/** Output rows of every sequence, as bytes. */
function rowsOf(built: BuiltCase, shape: AttentionShape): Buffer[][] {
  const out = runOpCase({ addon, context }, 'attention', built).outputs[0] as HostTensor;
  const starts = hostValues(built.inputs[5] as HostTensor);
  const rowBytes = shape.N * shape.D * 4;
  return shape.sequences.map(([queries], s) =>
    Array.from({ length: queries }, (_, t) => {
      const first = ((starts[s] as number) + t) * rowBytes;
      return Buffer.from(out.bytes.subarray(first, first + rowBytes));
    }),
  );
}

for (const isa of ['portable', 'avx2', 'avx512-vnni', 'amx', 'amx-emulated']) {
  const reason = initial.missing[isa];
  describe.skipIf(reason !== undefined)(`${isa}${reason === undefined ? '' : `: not run, ${reason}`}`, () => {
    beforeAll(() => addon.configureBackend('cpu', 'isa', isa));

    it(`agrees with the reference over up to ${ROUNDS} random calls`, () => {
      const holds = (drawn: RandomCase): void => {
        const item = {
          name: 'random',
          op: 'attention',
          tolerance: tolerance(drawn),
          build: () => build(drawn),
        } as const;
        expect(checkOpCase({ addon, context }, item)).toEqual([]);
      };
      fc.assert(fc.property(cases, holds), { seed, numRuns: ROUNDS, interruptAfterTimeLimit: 30_000 });
    });

    it.each(Object.entries(EDGES))('agrees with the reference: %s', (name, make) => {
      expect(checkOpCase({ addon, context }, { name, op: 'attention', tolerance: 1e-5, build: make })).toEqual([]);
    });

    it('gives a sequence the same bits whatever its batch mates', () => {
      const holds = (drawn: RandomCase): void => {
        const built = build(drawn);
        const together = rowsOf(built, drawn.shape);
        together.forEach((rows, s) => {
          expect(alone(built, drawn.shape, s)).toEqual(rows);
        });
      };
      fc.assert(fc.property(cases, holds), { seed: seed + 1, numRuns: ROUNDS, interruptAfterTimeLimit: 30_000 });
    });
  });
}
