/**
 * The case table: every op × dtypes × shapes × layouts with seeded inputs, nasty ones among them (no rows, one row, sizes that are multiples of
 * nothing, NaN, infinities, huge and denormal values, strided and misaligned views), and how far a backend may be off. Used on every backend
 * by tests (run-op-case.ts) and, with `benchmarkCases`, by benchmarks. One table, hence longer than other files.
 */
import { ACTIVATION_KINDS, type DType, type OpName } from '@metashard/core';
import { elements, emptyHost, type HostTensor, hostTensor, type Placement } from './host-tensor.js';

export interface BuiltCase {
  inputs: (HostTensor | null)[];
  outputs: HostTensor[];
  attributes: number[];
}

export interface OpCase {
  readonly name: string;
  readonly op: OpName;
  /** Error allowed, relative to a reference output's magnitude. 0: exact. */
  readonly tolerance: number;
  /** Set where the portable CPU version is exact to so many units in the last place. */
  readonly oracleUlps?: number;
  readonly build: () => BuiltCase;
}

/** mulberry32: the same numbers everywhere. */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }
  /** [0, 1). */
  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }
  integer(end: number): number {
    return Math.floor(this.uniform() * end);
  }
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }
  normals(count: number, scale = 1): Float64Array {
    return Float64Array.from({ length: count }, () => Math.fround(this.normal() * scale));
  }
  integers(count: number, end: number): Float64Array {
    return Float64Array.from({ length: count }, () => this.integer(end));
  }
  /** -128 … 127. */
  bytes(count: number): Float64Array {
    return this.integers(count, 256).map((x) => x - 128);
  }
}

const floats = (r: Random, dims: number[], placement: Placement = {}, scale = 1): HostTensor =>
  hostTensor(dims, r.normals(elements(dims), scale), placement);
const bytes = (r: Random, dims: number[], placement: Placement = {}): HostTensor =>
  hostTensor(dims, r.bytes(elements(dims)), { dtype: 'int8', ...placement });
const ints = (dims: number[], values: ArrayLike<number>): HostTensor => hostTensor(dims, values, { dtype: 'int32' });
const positive = (r: Random, count: number): HostTensor =>
  hostTensor(
    [count],
    r.normals(count).map((x) => Math.abs(x) + 0.01),
  );
/** Rows `gap` elements apart and shifted by 1, so that nothing is aligned to more than an element. */
const apart = (columns: number, gap = 3): Placement => ({ strides: [columns + gap, 1], offset: 1 });

/** What breaks careless kernels: every special value, and the edges of float16, of exponentials and of float32. */
const NASTY = [
  0,
  -0,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
  1e-45,
  -1e-40,
  1.1754944e-38,
  3.4e38,
  -3.4e38,
  1e19,
  -1e20,
  65504,
  65519.996,
  65520,
  -65536,
  2 ** -24,
  2 ** -25,
  3 * 2 ** -26,
  6.1e-5,
  87.5,
  -87.5,
  88.8,
  -104,
  700,
  -700,
  1 + 2 ** -8,
  1 + 3 * 2 ** -9,
  -(1 + 2 ** -11),
  5.9604645e-8,
].map(Math.fround);

const cases: OpCase[] = [];
let seed = 1;
function add(
  op: OpName,
  name: string,
  tolerance: number,
  build: (random: Random) => BuiltCase,
  extra: Partial<OpCase> = {},
): void {
  const mine = seed++;
  cases.push({ name: `${op}: ${name}`, op, tolerance, build: () => build(new Random(mine)), ...extra });
}

const FLOATS: DType[] = ['float32', 'float16', 'bfloat16'];
/** Columns that are multiples of nothing, and the usual ones. */
const WIDTHS = [1, 3, 17, 64, 131, 320];

function addRowOps(): void {
  for (const dtype of FLOATS) {
    for (const H of [1, 33, 128]) {
      add('embedding', `${dtype} table [50, ${H}]`, 0, (r) => ({
        inputs: [ints([7], r.integers(7, 50)), floats(r, [50, H], { dtype, ...apart(H) })],
        outputs: [emptyHost([7, H], apart(H, 5))],
        attributes: [],
      }));
    }
    for (const H of WIDTHS) {
      for (const rows of [1, 5]) {
        add('layer_norm', `[${rows}, ${H}] ${dtype}`, 3e-7, (r) => ({
          inputs: [floats(r, [rows, H], apart(H), 3), floats(r, [H], { dtype }), floats(r, [H], { dtype })],
          outputs: [emptyHost([rows, H])],
          attributes: [1e-5],
        }));
        add('rms_norm', `[${rows}, ${H}] ${dtype}`, 3e-7, (r) => ({
          inputs: [floats(r, [rows, H], {}, 3), floats(r, [H], { dtype })],
          outputs: [emptyHost([rows, H], apart(H))],
          attributes: [1e-6],
        }));
      }
    }
  }
  const special = (r: Random, values: number[]): HostTensor => hostTensor([3, 20], [...values, ...r.normals(40)]);
  for (const [what, values] of [
    ['huge', Array(20).fill(1e30)],
    ['huge and small', [...Array(10).fill(-3e38), ...Array(10).fill(1)]],
    ['denormal', Array(20).fill(1e-41)],
    ['a NaN', [Number.NaN, ...Array(19).fill(1)]],
    ['an infinity', [Number.POSITIVE_INFINITY, ...Array(19).fill(1)]],
    ['a large mean', Array.from({ length: 20 }, (_, i) => 1e6 + i)],
  ] as [string, number[]][]) {
    add('layer_norm', `${what}, no bias`, 3e-7, (r) => ({
      inputs: [special(r, values), floats(r, [20]), null],
      outputs: [emptyHost([3, 20])],
      attributes: [1e-5],
    }));
    add('rms_norm', what, 3e-7, (r) => ({
      inputs: [special(r, values), floats(r, [20])],
      outputs: [emptyHost([3, 20])],
      attributes: [1e-5],
    }));
  }
}

function addElementwise(): void {
  const shapes: [string, number[], Placement, Placement][] = [
    ['[5, 131]', [5, 131], {}, {}],
    ['a scalar', [], {}, {}],
    ['[1]', [1], {}, { offset: 1 }],
    ['[40000]', [40000], {}, {}],
    ['strided rows', [4, 37], apart(37), apart(37, 1)],
    ['transposed', [6, 7], { strides: [1, 6] }, {}],
    ['[2, 3, 4, 5] permuted', [2, 3, 4, 5], { strides: [5, 40, 10, 1] }, { strides: [60, 20, 5, 1] }],
    ['no elements', [0, 8], {}, {}],
  ];
  for (const [what, dims, left, right] of shapes) {
    for (const op of ['add', 'mul'] as const) {
      add(op, what, 0, (r) => ({
        inputs: [floats(r, dims, left), floats(r, dims, right)],
        outputs: [emptyHost(dims, what === 'transposed' ? left : {})],
        attributes: [],
      }));
    }
    for (const [i, dtype] of (['int8', 'float32', 'int64', 'bool', 'bfloat16'] as DType[]).entries()) {
      add('copy', `${what} ${dtype}`, 0, (r) => ({
        inputs: [hostTensor(dims, r.integers(elements(dims), 2), { dtype, ...left })],
        outputs: [emptyHost(dims, { dtype, ...(i % 2 === 0 ? right : {}) })],
        attributes: [],
      }));
    }
    add('activation', what, 2e-6, (r) => ({
      inputs: [floats(r, dims, left)],
      outputs: [emptyHost(dims, right)],
      attributes: [4],
    }));
  }
  for (const op of ['add', 'mul'] as const) {
    add(op, 'special values', 0, () => ({
      inputs: [hostTensor([NASTY.length], NASTY), hostTensor([NASTY.length], [...NASTY].reverse())],
      outputs: [emptyHost([NASTY.length])],
      attributes: [],
    }));
  }
  for (const [kind, name] of ACTIVATION_KINDS.entries()) {
    const finite = NASTY.filter((x) => x !== Number.NEGATIVE_INFINITY); // x · σ(-∞) is NaN or -0, as one likes
    add('activation', `${name} special values`, 2e-6, () => ({
      inputs: [hostTensor([finite.length], finite)],
      outputs: [emptyHost([finite.length])],
      attributes: [kind],
    }));
    add('activation', `${name} [7, 333]`, 2e-6, (r) => ({
      inputs: [floats(r, [7, 333], apart(333), 4)],
      outputs: [emptyHost([7, 333])],
      attributes: [kind],
    }));
  }
}

function addCasts(): void {
  const integers: [DType, number[]][] = [
    ['int8', [-128, -1, 0, 127]],
    ['uint8', [0, 1, 128, 255]],
    ['int32', [-(2 ** 31), 2 ** 24 + 1, 2 ** 31 - 1, 0]],
    ['int64', [-(2 ** 52) - 1, 2 ** 40 + 3, 2 ** 24 + 1, 5]],
    ['bool', [0, 1, 1, 0]],
  ];
  for (const [dtype, values] of integers) {
    add('cast', `${dtype} to float32`, 0, () => ({
      inputs: [hostTensor([4], values, { dtype })],
      outputs: [emptyHost([4])],
      attributes: [],
    }));
  }
  for (const from of FLOATS) {
    for (const to of FLOATS) {
      add('cast', `${from} to ${to}`, 0, (r) => {
        const ties = Array.from({ length: 400 }, (_, i) => (i - 200) * 2 ** -26 + (i % 3) * (1 + i * 2 ** -12));
        const values = [...NASTY, ...ties, ...r.normals(301, 1000)];
        return {
          inputs: [hostTensor([values.length], values, { dtype: from, offset: 1 })],
          outputs: [emptyHost([values.length], { dtype: to })],
          attributes: [],
        };
      });
      add('cast', `${from} to ${to} transposed`, 0, (r) => ({
        inputs: [floats(r, [5, 9], { dtype: from, strides: [1, 5] })],
        outputs: [emptyHost([5, 9], { dtype: to, strides: [1, 5] })],
        attributes: [],
      }));
    }
  }
}

function addLinear(): void {
  const sizes: [number, number, number][] = [
    [1, 1, 1],
    [1, 64, 48],
    [1, 131, 77],
    [2, 32, 17],
    [5, 100, 33],
    [8, 256, 64],
    [13, 70, 50],
    [33, 65, 95],
    [70, 129, 66],
    [0, 16, 8],
    [3, 0, 5],
    [3, 5, 0],
  ];
  for (const dtype of FLOATS) {
    for (const [rows, K, N] of sizes) {
      const bias: DType | null = rows % 2 === 0 ? null : rows % 3 === 0 ? 'float32' : dtype;
      add(
        'linear',
        `[${rows}, ${K}] · ${dtype} [${N}, ${K}]`,
        2e-6,
        (r) => ({
          inputs: [
            floats(r, [rows, K], rows > 2 ? apart(K) : {}),
            floats(r, [N, K], { dtype, ...(N % 2 === 1 ? apart(K) : {}) }, 0.1),
            bias === null ? null : floats(r, [N], { dtype: bias }),
          ],
          outputs: [emptyHost([rows, N], rows === 5 ? apart(N) : {})],
          attributes: [],
        }),
        { oracleUlps: 0.51 },
      );
    }
  }
  add('linear', 'NaN and infinity in x and weight', 2e-6, (r) => {
    const [x, w] = [r.normals(4 * 40), r.normals(24 * 40)];
    x[45] = Number.NaN;
    x[85] = Number.POSITIVE_INFINITY;
    w[3 * 40 + 7] = Number.NEGATIVE_INFINITY;
    w[5 * 40 + 39] = Number.NaN;
    return {
      inputs: [hostTensor([4, 40], x), hostTensor([24, 40], w), null],
      outputs: [emptyHost([4, 24])],
      attributes: [],
    };
  });
}

/** Activations with a few outlier columns: 7 of every 100 or so above 6, and one column of quiet values turned loud in one row. */
function activations(r: Random, rows: number, K: number, placement: Placement): HostTensor {
  const values = r.normals(rows * K);
  for (let k = 0; k < K; k++) {
    if (r.uniform() < 0.05) for (let t = 0; t < rows; t++) values[t * K + k] = Math.fround(r.normal() * 12);
  }
  if (rows > 1 && K > 2) values[K + 2] = 6;
  return hostTensor([rows, K], values, placement);
}

const quantizeOutputs = (rows: number, K: number, gap = 0): HostTensor[] => [
  emptyHost([rows, K], { dtype: 'int8', strides: [K + gap, 1] }),
  emptyHost([rows]),
  emptyHost([K + 1], { dtype: 'int32' }),
];

function addInt8Quantize(): void {
  for (const [rows, K] of [
    [1, 1],
    [1, 64],
    [1, 331],
    [4, 128],
    [7, 67],
    [50, 193],
    [0, 32],
    [3, 0],
  ] as const) {
    for (const [threshold, perRow] of [
      [0, 0],
      [6, 0],
      [6, 1],
      [0.7, 0],
    ] as const) {
      add('int8_quantize', `[${rows}, ${K}] threshold ${threshold} per_row ${perRow}`, 0, (r) => ({
        inputs: [activations(r, rows, K, rows === 7 ? apart(K) : {})],
        outputs: quantizeOutputs(rows, K, rows === 7 ? 2 : 0),
        attributes: [threshold, perRow],
      }));
    }
  }
  const rowsOf = (r: Random): number[][] => [
    Array(20).fill(0),
    Array.from({ length: 20 }, (_, i) => i * 1e-39),
    Array.from({ length: 20 }, (_, i) => (i - 10) * 1e-45),
    Array.from({ length: 20 }, (_, i) => (i - 10) * 3e37),
    [Number.NaN, ...r.normals(19)],
    [...r.normals(19), Number.POSITIVE_INFINITY],
    Array.from({ length: 20 }, (_, i) => (i === 19 ? 127 : i + 0.5)), // exact ties: scale 1
    [5.9999995, 6, -6, -5.9999995, ...r.normals(16)],
  ];
  for (const [threshold, perRow] of [
    [0, 0],
    [6, 0],
    [6, 1],
  ] as const) {
    for (const row of [0, 1, 2, 3, 4, 5, 6, 7]) {
      add('int8_quantize', `special row ${row} threshold ${threshold} per_row ${perRow}`, 0, (r) => ({
        inputs: [hostTensor([2, 20], [...(rowsOf(r)[row] as number[]), ...r.normals(20)])],
        outputs: quantizeOutputs(2, 20),
        attributes: [threshold, perRow],
      }));
    }
  }
}

interface Int8Product {
  rows: number;
  K: number;
  N: number;
  packed: boolean;
}

function int8Products(): Int8Product[] {
  const sizes: [number, number, number][] = [
    [1, 1, 1],
    [1, 64, 16],
    [1, 131, 77],
    [2, 64, 40],
    [5, 499, 33],
    [8, 256, 64],
    [16, 128, 32],
    [20, 65, 47],
    [50, 192, 50],
    [97, 320, 70],
    [0, 64, 16],
    [4, 0, 7],
    [4, 9, 0],
  ];
  return sizes.flatMap(([rows, K, N]) => [true, false].map((packed) => ({ rows, K, N, packed })));
}

const weightPlacement = ({ N, K, packed }: Int8Product): Placement =>
  packed ? { layout: 'packed_int8' } : N % 2 === 1 ? { strides: [K + 5, 1], offset: 3 } : {};
const productName = ({ rows, K, N, packed }: Int8Product): string =>
  `[${rows}, ${K}] · ${packed ? 'packed' : 'strided'} [${N}, ${K}]`;

function addInt8Products(): void {
  for (const shape of int8Products()) {
    const { rows, K, N } = shape;
    add('int8_matmul', productName(shape), 0, (r) => ({
      inputs: [
        bytes(r, [rows, K], rows === 5 ? { strides: [K + 1, 1] } : {}),
        bytes(r, [N, K], weightPlacement(shape)),
      ],
      outputs: [emptyHost([rows, N], { dtype: 'int32', ...(rows === 5 ? apart(N) : {}) })],
      attributes: [],
    }));
    for (const [threshold, perRow] of [
      [0, 0],
      [6, 0],
      [6, 1],
    ] as const) {
      add(
        'int8_linear',
        `${productName(shape)} threshold ${threshold} per_row ${perRow}`,
        1e-6,
        (r) => int8LinearCase(r, shape, threshold, perRow),
        { oracleUlps: 0.501 },
      );
    }
  }
  add('int8_matmul', 'extremes', 0, () => ({
    inputs: [
      hostTensor([3, 640], Array(1920).fill(-128), { dtype: 'int8' }),
      hostTensor([20, 640], Array(12800).fill(-128), { dtype: 'int8' }),
    ],
    outputs: [emptyHost([3, 20], { dtype: 'int32' })],
    attributes: [],
  }));
  add('int8_linear', 'NaN, infinities and zeros in scales and outliers', 1e-6, (r) => {
    const built = int8LinearCase(r, { rows: 6, K: 96, N: 20, packed: true }, 6, 0);
    built.inputs[2] = hostTensor([6], [1, 0, Number.NaN, Number.POSITIVE_INFINITY, 1e-40, 3e38]);
    built.inputs[5] = hostTensor([20], [0, Number.NaN, Number.POSITIVE_INFINITY, ...r.normals(17).map(Math.abs)]);
    return built;
  });
}

/** Outlier columns are chosen, not derived: an op's case must not depend on another op. */
function int8LinearCase(r: Random, shape: Int8Product, threshold: number, perRow: number): BuiltCase {
  const { rows, K, N } = shape;
  const columns = [...Array(K).keys()].filter(() => threshold > 0 && r.uniform() < 0.05);
  const x = r.normals(rows * K);
  const CA = r.integers(rows * K, 255).map((q) => q - 127);
  for (const k of columns) {
    for (let t = 0; t < rows; t++) {
      x[t * K + k] = Math.fround(r.normal() * 9);
      if (!perRow || Math.abs(x[t * K + k] as number) >= threshold) CA[t * K + k] = 0;
    }
  }
  const list = ints([K + 1], [columns.length, ...columns, ...Array(K - columns.length).fill(-7)]);
  const weights = r.integers(N * K, 255).map((q) => q - 127);
  return {
    inputs: [
      hostTensor([rows, K], x, rows === 20 ? apart(K) : {}),
      hostTensor([rows, K], CA, { dtype: 'int8', ...(rows === 20 ? apart(K) : {}) }),
      positive(r, rows),
      list,
      hostTensor([N, K], weights, { dtype: 'int8', ...weightPlacement(shape) }),
      positive(r, N),
      rows % 3 === 1 ? null : floats(r, [N], { dtype: FLOATS[rows % 3] as DType }),
    ],
    outputs: [emptyHost([rows, N], rows === 5 ? apart(N) : {})],
    attributes: [threshold, perRow],
  };
}

function addWeights(): void {
  for (const packed of [false, true]) {
    for (const [N, K] of [
      [1, 1],
      [16, 64],
      [17, 131],
      [40, 96],
      [5, 300],
      [0, 8],
      [6, 0],
    ] as const) {
      const placement = weightPlacement({ rows: 0, N, K, packed });
      for (const dtype of FLOATS) {
        for (const float16First of [0, 1]) {
          add('quantize_weight', `${dtype} [${N}, ${K}] packed ${packed} float16_first ${float16First}`, 0, (r) => ({
            inputs: [floats(r, [N, K], { dtype, ...(N === 17 ? apart(K) : {}) }, 0.05)],
            outputs: [emptyHost([N, K], { dtype: 'int8', ...placement }), emptyHost([N])],
            attributes: [float16First],
          }));
        }
      }
      add('dequantize_weight', `[${N}, ${K}] packed ${packed}`, 0, (r) => ({
        inputs: [bytes(r, [N, K], placement), positive(r, N)],
        outputs: [emptyHost([N, K], N === 17 ? apart(K) : {})],
        attributes: [],
      }));
      if (packed) {
        add('pack_int8', `[${N}, ${K}]`, 0, (r) => ({
          inputs: [bytes(r, [N, K], N === 17 ? apart(K) : {})],
          outputs: [emptyHost([N, K], { dtype: 'int8', layout: 'packed_int8' })],
          attributes: [],
        }));
        add('unpack_int8', `[${N}, ${K}]`, 0, (r) => ({
          inputs: [bytes(r, [N, K], placement)],
          outputs: [emptyHost([N, K], { dtype: 'int8', ...(N === 17 ? apart(K) : {}) })],
          attributes: [],
        }));
      }
    }
    add('quantize_weight', `special rows packed ${packed}`, 0, (r) => ({
      inputs: [
        hostTensor(
          [7, 20],
          [
            ...Array(20).fill(0),
            ...Array.from({ length: 20 }, (_, i) => i * 1e-40),
            ...Array.from({ length: 20 }, (_, i) => (i - 9) * 2e37),
            ...[Number.NaN, ...r.normals(19)],
            ...[Number.NEGATIVE_INFINITY, ...r.normals(19)],
            ...Array.from({ length: 20 }, (_, i) => (i === 19 ? 127 : i + 0.5)),
            ...r.normals(20),
          ],
        ),
      ],
      outputs: [emptyHost([7, 20], { dtype: 'int8', layout: packed ? 'packed_int8' : 'strided' }), emptyHost([7])],
      attributes: [0],
    }));
  }
}

interface AttentionShape {
  N: number;
  KV: number;
  D: number;
  /** [queries, context] of each sequence. */
  sequences: [number, number][];
  cache?: DType;
  block?: number;
  causal?: number;
  window?: number;
  softcap?: number;
  alibi?: boolean;
  /** q, k and v as views of one [tokens, N + 2 KV, D]. */
  fused?: boolean;
  /** A NaN in the last token's key and value: earlier tokens must not see it. */
  nan?: boolean;
}

/** Rows of two tokens no sequence owns come first; blocks are handed out in a shuffled order. */
export function attentionCase(r: Random, shape: AttentionShape): BuiltCase {
  const { N, KV, D, sequences, cache, block = 16, causal = 1, window = 0, softcap = 0 } = shape;
  const unused = 2;
  const tokens = unused + sequences.reduce((sum, [queries]) => sum + queries, 0);
  const all = r.normals(tokens * (N + 2 * KV) * D);
  if (shape.nan) for (let i = 0; i < 2 * KV * D; i++) all[(tokens - 1) * (N + 2 * KV) * D + N * D + i] = Number.NaN;
  const whole = hostTensor([tokens, N + 2 * KV, D], all);
  const part = (heads: number, first: number): HostTensor => {
    const view = {
      ...whole,
      dims: [tokens, heads, D],
      strides: [(N + 2 * KV) * D, D, 1],
      offset: first * D,
    };
    if (shape.fused) return view;
    const values = Array.from({ length: tokens * heads * D }, (_, i) => {
      const t = Math.floor(i / (heads * D));
      return all[(t * (N + 2 * KV) + first) * D + (i % (heads * D))] as number;
    });
    return hostTensor([tokens, heads, D], values);
  };
  const starts: number[] = [];
  let next = unused;
  for (const [queries] of sequences) {
    starts.push(next);
    next += queries;
  }
  const needed = sequences.map(([, context]) => Math.ceil(context / block));
  const columns = Math.max(1, ...needed);
  const blocks = needed.reduce((a, b) => a + b, 0) + 3;
  const order = [...Array(blocks).keys()].sort((a, b) => ((a * 7919) % 101) - ((b * 7919) % 101));
  const tables = sequences.flatMap((_, s) =>
    Array.from({ length: columns }, (_, i) => (i < (needed[s] as number) ? (order.pop() as number) : -1)),
  );
  const pool = (): HostTensor => floats(r, [blocks, KV, block, D], { dtype: cache as DType });
  const list = (values: number[]): HostTensor => ints([sequences.length], values);
  return {
    inputs: [
      part(N, 0),
      part(KV, N),
      part(KV, N + KV),
      cache === undefined ? null : pool(),
      cache === undefined ? null : pool(),
      list(starts),
      list(sequences.map(([queries]) => queries)),
      list(sequences.map(([, context]) => context)),
      cache === undefined ? null : ints([sequences.length, columns], tables),
      shape.alibi
        ? hostTensor(
            [N],
            Array.from({ length: N }, (_, i) => 2 ** -(i + 1)),
          )
        : null,
    ],
    outputs: [emptyHost([tokens, N, D])],
    attributes: [1 / Math.sqrt(D), causal, window, softcap],
  };
}

function addAttention(): void {
  const shapes: [string, AttentionShape][] = [
    ['one token', { N: 1, KV: 1, D: 1, sequences: [[1, 1]] }],
    [
      'no cache, causal',
      {
        N: 4,
        KV: 4,
        D: 16,
        sequences: [
          [5, 5],
          [1, 1],
          [0, 0],
          [40, 40],
        ],
      },
    ],
    [
      'no cache, bidirectional',
      {
        N: 4,
        KV: 2,
        D: 24,
        causal: 0,
        sequences: [
          [33, 33],
          [7, 7],
        ],
      },
    ],
    ['prefill over tiles', { N: 2, KV: 1, D: 32, cache: 'float32', sequences: [[150, 150]] }],
    [
      'prefill after a context',
      {
        N: 4,
        KV: 2,
        D: 64,
        cache: 'float32',
        sequences: [
          [70, 133],
          [3, 67],
        ],
      },
    ],
    [
      'decode batch',
      {
        N: 8,
        KV: 2,
        D: 64,
        cache: 'float32',
        fused: true,
        sequences: [
          [1, 1],
          [1, 130],
          [0, 0],
          [1, 77],
        ],
      },
    ],
    [
      'decode, split context',
      {
        N: 2,
        KV: 2,
        D: 16,
        cache: 'float32',
        sequences: [
          [1, 1500],
          [1, 512],
          [1, 513],
        ],
      },
    ],
    ['decode, split context, window', { N: 2, KV: 1, D: 16, cache: 'float32', window: 700, sequences: [[1, 1400]] }],
    [
      'float16 cache',
      {
        N: 4,
        KV: 2,
        D: 32,
        cache: 'float16',
        sequences: [
          [20, 50],
          [1, 40],
        ],
      },
    ],
    [
      'bfloat16 cache',
      {
        N: 4,
        KV: 2,
        D: 40,
        cache: 'bfloat16',
        fused: true,
        sequences: [
          [9, 50],
          [1, 40],
        ],
      },
    ],
    [
      'odd head size',
      {
        N: 6,
        KV: 3,
        D: 13,
        cache: 'float32',
        sequences: [
          [20, 50],
          [1, 40],
        ],
      },
    ],
    [
      'head size 80',
      {
        N: 2,
        KV: 2,
        D: 80,
        cache: 'float32',
        sequences: [
          [40, 90],
          [1, 40],
        ],
      },
    ],
    [
      'head size 320',
      {
        N: 2,
        KV: 1,
        D: 320,
        cache: 'float32',
        sequences: [
          [20, 70],
          [1, 40],
        ],
      },
    ],
    ['block size 5', { N: 2, KV: 2, D: 16, cache: 'float32', block: 5, sequences: [[20, 53]] }],
    [
      'window',
      {
        N: 4,
        KV: 2,
        D: 16,
        cache: 'float32',
        window: 9,
        sequences: [
          [70, 150],
          [1, 40],
          [1, 3],
        ],
      },
    ],
    ['window of 1', { N: 2, KV: 2, D: 16, window: 1, sequences: [[30, 30]] }],
    ['window, bidirectional', { N: 2, KV: 2, D: 16, causal: 0, window: 4, sequences: [[80, 80]] }],
    [
      'softcap',
      {
        N: 2,
        KV: 1,
        D: 32,
        cache: 'float32',
        softcap: 2,
        sequences: [
          [40, 70],
          [1, 40],
        ],
      },
    ],
    [
      'ALiBi',
      {
        N: 8,
        KV: 8,
        D: 16,
        cache: 'float32',
        alibi: true,
        fused: true,
        sequences: [
          [40, 70],
          [1, 600],
        ],
      },
    ],
    [
      'many heads a kv head',
      {
        N: 71,
        KV: 1,
        D: 16,
        cache: 'float32',
        sequences: [
          [3, 20],
          [1, 40],
        ],
      },
    ],
    ['a NaN later', { N: 4, KV: 4, D: 32, nan: true, sequences: [[90, 90]] }],
    [
      'a NaN later, cached',
      {
        N: 4,
        KV: 2,
        D: 32,
        nan: true,
        cache: 'float32',
        sequences: [
          [1, 9],
          [25, 60],
        ],
      },
    ],
    ['no sequences', { N: 4, KV: 2, D: 32, cache: 'float32', sequences: [] }],
  ];
  for (const [name, shape] of shapes) add('attention', name, 3e-6, (r) => attentionCase(r, shape));
}

function addRope(): void {
  for (const [tokens, half, scaling] of [
    [5, 32, 1],
    [1, 7, 0.5],
    [0, 8, 1],
    [40, 64, 1.25],
  ] as const) {
    add('rope_table', `${tokens} positions, ${half} frequencies`, 1.3e-7, (r) => ({
      inputs: [
        ints([tokens], r.integers(tokens, 100000)),
        hostTensor(
          [half],
          Array.from({ length: half }, (_, i) => 10000 ** (-i / half)),
        ),
      ],
      outputs: [emptyHost([tokens, half]), emptyHost([tokens, half], apart(half))],
      attributes: [scaling],
    }));
  }
  for (const interleaved of [0, 1]) {
    for (const [tokens, N, D, half] of [
      [3, 4, 64, 32],
      [1, 2, 16, 3],
      [5, 1, 33, 16],
      [7, 3, 8, 0],
      [0, 2, 8, 4],
    ] as const) {
      add('rope', `[${tokens}, ${N}, ${D}] first ${2 * half} interleaved ${interleaved}`, 2e-7, (r) => ({
        inputs: [
          floats(r, [tokens, N, D], { strides: [N * (D + 1) + 4, D + 1, 1], offset: 1 }),
          floats(r, [tokens, half]),
          floats(r, [tokens, half], apart(half)),
        ],
        outputs: [emptyHost([tokens, N, D])],
        attributes: [interleaved],
      }));
    }
  }
}

function addSelection(): void {
  add('select_rows', '[9, 33] rows 8, 0, 0', 0, (r) => ({
    inputs: [floats(r, [9, 33], apart(33)), ints([3], [8, 0, 0])],
    outputs: [emptyHost([3, 33])],
    attributes: [],
  }));
  add('select_rows', 'no rows', 0, (r) => ({
    inputs: [floats(r, [9, 33]), ints([0], [])],
    outputs: [emptyHost([0, 33])],
    attributes: [],
  }));
  for (const V of [1, 5, 16, 259, 70000]) {
    add('argmax', `[3, ${V}]`, 0, (r) => ({
      inputs: [floats(r, [3, V], apart(V))],
      outputs: [emptyHost([3], { dtype: 'int32' })],
      attributes: [],
    }));
  }
  add('argmax', 'ties, NaN, infinities', 0, () => {
    const rows = [
      [1, 3, 3, 2],
      [1, Number.NaN, 9, Number.NaN],
      [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY],
      [1, Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY, 0],
    ].map((row) => [...Array(30).fill(Number.NEGATIVE_INFINITY), ...row, ...Array(30).fill(Number.NEGATIVE_INFINITY)]);
    return {
      inputs: [hostTensor([4, 64], rows.flat())],
      outputs: [emptyHost([4], { dtype: 'int32' })],
      attributes: [],
    };
  });
  const settings: [string, [number, number, number, number]][] = [
    ['greedy', [0, 0, 1, 1]],
    ['plain', [1, 0, 1, 1]],
    ['hot', [5, 0, 1, 1]],
    ['top_k', [0.8, 20, 1, 1]],
    ['top_p', [1, 0, 0.7, 1]],
    ['small top_p', [1, 0, 1e-6, 1]],
    ['top_k and top_p', [1.3, 50, 0.9, 1]],
    ['penalty', [0, 0, 1, 5]],
    ['all', [0.9, 40, 0.95, 1.3]],
  ];
  for (const V of [1, 40, 3001]) {
    for (const [name, parameters] of settings) {
      add('sample', `${name} of ${V}`, 0, (r) => ({
        inputs: [
          floats(r, [12, V], {}, 3),
          hostTensor([12, 4], Array(12).fill(parameters).flat()),
          hostTensor([12], [0, 1 - 2 ** -24, ...r.integers(10, 2 ** 24).map((x) => x / 2 ** 24)]),
          ints([12, 6], r.integers(72, V)),
          ints([12], r.integers(12, 7)),
        ],
        outputs: [emptyHost([12], { dtype: 'int32' })],
        attributes: [],
      }));
    }
  }
  add('sample', 'equal, infinite and NaN logits', 0, () => ({
    inputs: [
      hostTensor([4, 3], [1, 1, 1, 0, Number.POSITIVE_INFINITY, 1, 0, 1, Number.NaN, Number.NEGATIVE_INFINITY, 0, 0]),
      hostTensor([4, 4], Array(4).fill([1, 0, 1, 1]).flat()),
      hostTensor([4], [0.5, 0.5, 0.5, 0]),
      ints([4, 1], [0, 0, 0, 0]),
      ints([4], [0, 0, 0, 0]),
    ],
    outputs: [emptyHost([4], { dtype: 'int32' })],
    attributes: [],
  }));
}

/** All cases, in a fixed order. */
export function opCases(): readonly OpCase[] {
  if (cases.length === 0) {
    addRowOps();
    addElementwise();
    addCasts();
    addLinear();
    addInt8Quantize();
    addInt8Products();
    addWeights();
    addAttention();
    addRope();
    addSelection();
  }
  return cases;
}
