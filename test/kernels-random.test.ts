/**
 * The matrix kernels of every instruction set against the portable ones, over random shapes, strides, dtypes and
 * values. The case table (ops-cpu.test.ts) holds the portable ones to the reference; this one looks for what fixed
 * cases miss. METASHARD_TEST_SEED repeats a run.
 */
import { fileURLToPath } from 'node:url';
import { type ContextId, DTYPES, type DType, type Layout, native, type OpName } from '@metashard/core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { emptyHost, forEachElement, type HostTensor, hostTensor, hostValues, type Placement } from './host-tensor.js';
import { type BuiltCase, Random } from './op-cases.js';
import { runOpCase } from './run-op-case.js';

const ROUNDS = 60;
const seed = Number(process.env.METASHARD_TEST_SEED ?? Date.now() % 2 ** 31);

const addon = native();
addon.loadBackend('cpu', fileURLToPath(new URL('../packages/cpu/build/Release/metashard_cpu.so', import.meta.url)));
const initial = JSON.parse(addon.describeBackend('cpu')) as { isa: string; threads: number };

/** Why the backend refuses an instruction set, empty where it has it. */
function refusal(isa: string): string {
  try {
    addon.configureBackend('cpu', 'isa', isa);
    return '';
  } catch (error) {
    return (error as Error).message;
  } finally {
    addon.configureBackend('cpu', 'isa', initial.isa);
  }
}

let context: ContextId;
beforeAll(() => {
  context = addon.openContext('cpu', 0, 0);
  console.log(`kernels-random: METASHARD_TEST_SEED=${seed}`);
});
afterAll(() => {
  addon.configureBackend('cpu', 'isa', initial.isa);
  addon.configureBackend('cpu', 'threads', String(initial.threads));
  addon.closeContext(context);
});

// ---- random calls ----

const pick = <T>(r: Random, values: readonly T[]): T => values[r.integer(values.length)] as T;
/** A size: often tiny, often a multiple of 16, sometimes large, at least `least`. */
const size = (r: Random, large: number, least = 1): number =>
  Math.max(least, pick(r, [r.integer(5), r.integer(40), 16 * r.integer(6), r.integer(large)]));
/** Rows with a gap of up to 4 elements, the first one misaligned now and then. */
const rowsApart = (r: Random, columns: number): Placement => ({
  strides: [columns + r.integer(5), 1],
  offset: r.integer(3),
});
const FLOATS: DType[] = ['float32', 'float16', 'bfloat16'];
const SPECIAL = [0, -0, 6, -6, Number.NaN, Number.POSITIVE_INFINITY, -1e-40, 3e-38, 7.5, -123];

/** Normal values; some calls get outlier columns, special values, whole rows of outliers or zeros, or denormals. */
function activations(r: Random, rows: number, K: number): HostTensor {
  const values = r.normals(rows * K, pick(r, [1, 1, 1, 4, 1e-38]));
  const kind = r.integer(5);
  if (kind === 1) {
    for (let i = 0; i < 4; i++) {
      const k = r.integer(K);
      for (let t = 0; t < rows; t++) if (r.integer(3) > 0) values[t * K + k] = Math.fround(r.normal() * 30);
    }
  }
  if (kind === 2) for (let i = 0; i < values.length; i += 1 + r.integer(60)) values[i] = pick(r, SPECIAL);
  if (kind === 3 && rows > 0) values.fill(pick(r, [0, 8, -9]), 0, K);
  return hostTensor([rows, K], values, rowsApart(r, K));
}

const int8Matrix = (r: Random, rows: number, K: number, layout: Layout): HostTensor =>
  hostTensor([rows, K], r.bytes(rows * K), { dtype: 'int8', layout, ...(layout === 'strided' && rowsApart(r, K)) });
const layoutOf = (r: Random): Layout => pick(r, ['strided', 'packed_int8']);
const bias = (r: Random, N: number): HostTensor | null =>
  pick(r, [null, hostTensor([N], r.normals(N), { dtype: pick(r, FLOATS) })]);

type Call = { op: OpName; built: BuiltCase };

function linearCall(r: Random): Call {
  const [rows, N, K] = [size(r, 90, 0), size(r, 150), size(r, pick(r, [500, 500, 500, 2600]))];
  const weight = hostTensor([N, K], r.normals(N * K), { dtype: pick(r, FLOATS), ...rowsApart(r, K) });
  const x = hostTensor([rows, K], r.normals(rows * K), rowsApart(r, K));
  return {
    op: 'linear',
    built: { inputs: [x, weight, bias(r, N)], outputs: [emptyHost([rows, N], rowsApart(r, N))], attributes: [] },
  };
}

function quantizeCall(r: Random, rows = size(r, 90, 0), K = size(r, 700)): Call {
  const outputs = [
    emptyHost([rows, K], { dtype: 'int8', ...rowsApart(r, K) }),
    emptyHost([rows]),
    emptyHost([K + 1], { dtype: 'int32' }),
  ];
  const attributes = [pick(r, [0, 6, 6, 0.7]), r.integer(2)];
  return { op: 'int8_quantize', built: { inputs: [activations(r, rows, K)], outputs, attributes } };
}

/** Its activations are quantized by the portable kernel. */
function int8LinearCall(r: Random, [rows, N, K] = [size(r, 120, 0), size(r, 150), size(r, 600)]): Call {
  const quantize = quantizeCall(r, rows, K).built;
  const [CA, SCA, columns] = run('portable', { op: 'int8_quantize', built: quantize }) as HostTensor[];
  const SCB = hostTensor(
    [N],
    r.normals(N).map((s) => (r.integer(20) === 0 ? 0 : Math.abs(s))),
  );
  const CB = int8Matrix(r, N, K, layoutOf(r));
  const inputs = [quantize.inputs[0] as HostTensor, CA, SCA, columns, CB, SCB, bias(r, N)] as HostTensor[];
  const outputs = [emptyHost([rows, N], rowsApart(r, N))];
  return { op: 'int8_linear', built: { inputs, outputs, attributes: quantize.attributes } };
}

function int8WeightLinearCall(r: Random): Call {
  const [rows, N, K] = [size(r, 120, 0), size(r, 150), size(r, 700)];
  const SCB = hostTensor([N], r.normals(N).map(Math.abs));
  const inputs = [
    hostTensor([rows, K], r.normals(rows * K), rowsApart(r, K)),
    int8Matrix(r, N, K, layoutOf(r)),
    SCB,
    bias(r, N),
  ];
  const outputs = [emptyHost([rows, N], rowsApart(r, N))];
  return { op: 'int8_weight_linear', built: { inputs, outputs, attributes: [r.integer(2)] } };
}

function matmulCall(r: Random, [M, N, K] = [size(r, 120, 0), size(r, 150), size(r, 600)]): Call {
  const inputs = [int8Matrix(r, M, K, 'strided'), int8Matrix(r, N, K, layoutOf(r))];
  const outputs = [emptyHost([M, N], { dtype: 'int32', ...rowsApart(r, N) })];
  return { op: 'int8_matmul', built: { inputs, outputs, attributes: [] } };
}

function quantizeWeightCall(r: Random): Call {
  const [N, K, layout] = [size(r, 120), size(r, 500), layoutOf(r)];
  const values = activations(r, N, K);
  const weight = hostTensor([N, K], hostValues(values), { dtype: pick(r, FLOATS), ...rowsApart(r, K) });
  const CB = emptyHost([N, K], { dtype: 'int8', layout, ...(layout === 'strided' && rowsApart(r, K)) });
  return {
    op: 'quantize_weight',
    built: { inputs: [weight], outputs: [CB, emptyHost([N])], attributes: [r.integer(2)] },
  };
}

function packCall(r: Random): Call {
  const [N, K, unpack] = [size(r, 150), size(r, 500), r.integer(2) === 1];
  const input = int8Matrix(r, N, K, unpack ? 'packed_int8' : 'strided');
  const to: Placement = unpack ? rowsApart(r, K) : { layout: 'packed_int8' };
  const outputs = [emptyHost([N, K], { dtype: 'int8', ...to })];
  return { op: unpack ? 'unpack_int8' : 'pack_int8', built: { inputs: [input], outputs, attributes: [] } };
}

// ---- comparison ----

function run(isa: string, { op, built }: Call): HostTensor[] {
  addon.configureBackend('cpu', 'isa', isa);
  return runOpCase({ addon, context }, op, built).outputs;
}

const shapesOf = ({ op, built }: Call): string =>
  `${op} ${[...built.inputs, ...built.outputs].map((t) => (t === null ? '-' : `${t.dtype}[${t.dims}]${t.layout[0]}`)).join(' ')} (${built.attributes})`;

/** How far each output of a float op may be off: sums in float32 in any order. */
function tolerance({ op, built }: Call): (row: number, column: number) => number {
  const values = built.inputs.map((t) => (t === null ? null : hostValues(t)));
  const K = (built.inputs[0] as HostTensor).dims[1] as number;
  const norm = (data: Float64Array, row: number): number =>
    Math.hypot(...data.subarray(row * K, (row + 1) * K).filter(Number.isFinite));
  const [x, weight] = values as [Float64Array, Float64Array];
  if (op === 'linear') return (t, n) => 2e-6 * norm(x, t) * norm(weight, n);
  if (op === 'int8_weight_linear') {
    const relative = built.attributes[0] === 1 ? 1.01 * 2 ** -8 : 2e-6; // x rounded to bfloat16
    return (t, n) => (relative * norm(x, t) * norm(weight, n) * ((values[2] as Float64Array)[n] as number)) / 127;
  }
  const columns = values[3] as Float64Array;
  const SCB = values[5] as Float64Array;
  const count = columns[0] as number;
  return (t, n) => {
    let magnitude = 0;
    for (let i = 1; i <= count; i++) magnitude += Math.abs(x[t * K + (columns[i] as number)] as number);
    return (count + 1) * 2 ** -23 * (Number.isFinite(magnitude) ? magnitude : 0) * 1.01 * (SCB[n] as number);
  };
}

const same = (a: number, b: number): boolean => a === b || (Number.isNaN(a) && Number.isNaN(b));

/**
 * The bytes of packed and integer outputs, and of quantization scales, must be equal; float outputs may be rounded
 * otherwise.
 */
function problemsOf(call: Call, got: HostTensor[], wanted: HostTensor[]): string[] {
  if (['linear', 'int8_linear', 'int8_weight_linear'].includes(call.op)) return floatProblems(call, got[0], wanted[0]);
  return wanted.flatMap((tensor, i) => {
    const [a, b] = [got[i] as HostTensor, tensor];
    if (b.layout === 'packed_int8') return Buffer.compare(a.bytes, b.bytes) === 0 ? [] : [`output ${i}: other bytes`];
    const [mine, theirs] = [hostValues(a), hostValues(b)];
    const isList = call.op === 'int8_quantize' && i === 2;
    const end = isList ? (theirs[0] as number) + 1 : theirs.length;
    const at = theirs.findIndex((value, j) => j < end && !same(value, mine[j] as number));
    return at < 0 ? [] : [`output ${i} at ${at}: expected ${theirs[at]}, got ${mine[at]}`];
  });
}

function floatProblems(call: Call, got?: HostTensor, wanted?: HostTensor): string[] {
  const [mine, theirs] = [hostValues(got as HostTensor), hostValues(wanted as HostTensor)];
  const N = (wanted as HostTensor).dims[1] as number;
  const allowed = tolerance(call);
  for (let i = 0; i < theirs.length; i++) {
    const [a, b] = [mine[i] as number, theirs[i] as number];
    if (same(a, b)) continue;
    const bound = allowed(Math.floor(i / N), i % N) + 2 ** -23 * Math.abs(b) + 2 ** -140;
    if (!(Math.abs(a - b) <= bound))
      return [`at [${Math.floor(i / N)}, ${i % N}]: expected ${b} within ${bound}, got ${a}`];
  }
  return [];
}

/** Bytes between rows that an op must leave alone. */
function strayWrites(call: Call, got: HostTensor[]): string[] {
  return got.flatMap((tensor, i) => {
    if (tensor.layout === 'packed_int8') return [];
    const before = (call.built.outputs[i] as HostTensor).bytes;
    const inside = new Uint8Array(tensor.bytes.length);
    const width = DTYPES[tensor.dtype].bytes;
    forEachElement(tensor, (place) => inside.fill(1, place, place + width));
    const at = tensor.bytes.findIndex((byte, j) => inside[j] === 0 && byte !== before[j]);
    return at < 0 ? [] : [`output ${i}: byte ${at} outside it was written`];
  });
}

/** [rows, N, K]: more than one block of rows, which has 384 KiB or 48 rows (int8_panels.h). */
const SEVERAL_ROW_BLOCKS: [number, number, number][] = [
  [501, 70, 2100],
  [203, 33, 4100],
  [97, 161, 16_384],
];

const CALLS = {
  linear: linearCall,
  int8_quantize: quantizeCall,
  int8_linear: int8LinearCall,
  int8_matmul: matmulCall,
  int8_weight_linear: int8WeightLinearCall,
  quantize_weight: quantizeWeightCall,
  pack_int8: packCall,
} as const;

for (const isa of ['avx2', 'avx512-vnni', 'amx', 'amx-emulated']) {
  const reason = refusal(isa);
  describe.skipIf(reason !== '')(`${isa}${reason === '' ? '' : `: not run, ${reason}`}`, () => {
    it.each(Object.entries(CALLS))(`%s agrees with the portable kernel over ${ROUNDS} random calls`, (name, make) => {
      for (let round = 0; round < ROUNDS; round++) {
        const random = new Random(seed + round * 7919 + name.length);
        const call = make(random);
        const wanted = run('portable', call);
        const got = run(isa, call);
        const problems = [...problemsOf(call, got, wanted), ...strayWrites(call, got)];
        expect(problems, `seed ${seed}, round ${round}: ${shapesOf(call)}`).toEqual([]);
      }
    });

    it.each(['int8_linear', 'int8_matmul'] as const)('%s agrees over several blocks of rows', (name) => {
      for (const [round, shape] of SEVERAL_ROW_BLOCKS.entries()) {
        const call = CALLS[name](new Random(seed + round), shape);
        const [wanted, got] = [run('portable', call), run(isa, call)];
        const problems = [...problemsOf(call, got, wanted), ...strayWrites(call, got)];
        expect(problems, `seed ${seed}: ${shapesOf(call)}`).toEqual([]);
      }
    });
  });
}
