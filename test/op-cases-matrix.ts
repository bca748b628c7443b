/** Cases of the matrix ops: float linear, LLM.int8() quantization and products, weights and their layouts. */
import type { DType } from '@metashard/core';
import { emptyHost, type HostTensor, hostTensor, type Placement } from './host-tensor.js';
import { type AddCase, apart, type BuiltCase, bytes, FLOATS, floats, ints, positive, type Random } from './op-case.js';

export function addLinear(add: AddCase): void {
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

export function addInt8Quantize(add: AddCase): void {
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

export function addInt8Products(add: AddCase): void {
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

/** Rounding x to bfloat16 moves every product by up to 2^-8 of itself. */
const BFLOAT16_TOLERANCE = 1.01 * 2 ** -8;

/** int8 weights under float activations; few rows, and enough of them for the kernels of prompts. */
export function addInt8WeightLinear(add: AddCase): void {
  const shapes: Int8Product[] = [
    ...int8Products(),
    ...[true, false].map((packed) => ({ rows: 29, K: 601, N: 79, packed })),
  ];
  for (const shape of shapes) {
    for (const bfloat16 of [0, 1]) {
      const name = `${productName(shape)} bfloat16 ${bfloat16}`;
      add(
        'int8_weight_linear',
        name,
        bfloat16 === 1 ? BFLOAT16_TOLERANCE : 2e-6,
        (r) => int8WeightLinearCase(r, shape, bfloat16),
        { oracleUlps: 0.501 },
      );
    }
  }
  for (const rows of [1, 6, 30]) {
    add('int8_weight_linear', `NaN, infinities and zeros, ${rows} rows`, 2e-6, (r) => {
      const built = int8WeightLinearCase(r, { rows, K: 70, N: 20, packed: true }, 0);
      const x = r.normals(rows * 70);
      x[3] = Number.NaN;
      if (rows > 2) x.set([Number.POSITIVE_INFINITY, 1e30, -1e-45, 1e-30], 100);
      built.inputs[0] = hostTensor([rows, 70], x);
      built.inputs[2] = hostTensor([20], [0, Number.NaN, Number.POSITIVE_INFINITY, ...r.normals(17).map(Math.abs)]);
      return built;
    });
  }
}

function int8WeightLinearCase(r: Random, shape: Int8Product, bfloat16: number): BuiltCase {
  const { rows, K, N } = shape;
  return {
    inputs: [
      floats(r, [rows, K], rows === 20 || rows === 1 ? apart(K) : {}),
      bytes(r, [N, K], weightPlacement(shape)),
      positive(r, N),
      rows % 3 === 1 ? null : floats(r, [N], { dtype: FLOATS[rows % 3] as DType }),
    ],
    outputs: [emptyHost([rows, N], rows === 5 ? apart(N) : {})],
    attributes: [bfloat16],
  };
}

export function addInt8Embedding(add: AddCase): void {
  for (const packed of [true, false]) {
    for (const [V, H] of [
      [1, 1],
      [50, 33],
      [77, 128],
      [20, 0],
    ] as const) {
      const placement = weightPlacement({ rows: 0, N: V, K: H, packed });
      add('int8_embedding', `${packed ? 'packed' : 'strided'} table [${V}, ${H}]`, 0, (r) => ({
        inputs: [ints([9], r.integers(9, V)), bytes(r, [V, H], placement), positive(r, V)],
        outputs: [emptyHost([9, H], apart(H, 5))],
        attributes: [],
      }));
    }
  }
  add('int8_embedding', 'no ids', 0, (r) => ({
    inputs: [ints([0], []), bytes(r, [5, 8]), positive(r, 5)],
    outputs: [emptyHost([0, 8])],
    attributes: [],
  }));
}

export function addWeights(add: AddCase): void {
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
