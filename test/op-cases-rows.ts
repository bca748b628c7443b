/** Cases of the ops that work row by row: embedding, norms, rotary embedding, selection, argmax and sampling. */
import { emptyHost, type HostTensor, hostTensor } from './host-tensor.js';
import { type AddCase, apart, FLOATS, floats, ints, type Random } from './op-case.js';

/** Columns that are multiples of nothing, and the usual ones. */
const WIDTHS = [1, 3, 17, 64, 131, 320];

export function addRowOps(add: AddCase): void {
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

export function addRope(add: AddCase): void {
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

export function addSelection(add: AddCase): void {
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
  // Many ids, few values, the seen ones among the largest: ties where top_k cuts, and penalties that change who is in.
  for (const parameters of [
    [0.8, 20, 1, 1],
    [0.8, 20, 1, 1.5],
    [1.3, 50, 0.9, 0.7],
    [0, 0, 1, 1.5],
  ]) {
    add('sample', `ties among 16001: ${parameters}`, 0, (r) => ({
      inputs: [
        hostTensor(
          [3, 16001],
          Array.from(r.normals(3 * 16001), (x, i) => (i % 97 === 0 ? 5 : Math.round(x))),
        ),
        hostTensor([3, 4], Array(3).fill(parameters).flat()),
        hostTensor([3], [0.3, 1 - 2 ** -24, 0.9]),
        ints(
          [3, 90],
          r.integers(270, 164).map((i) => i * 97),
        ),
        ints([3], [90, 40, 1]),
      ],
      outputs: [emptyHost([3], { dtype: 'int32' })],
      attributes: [],
    }));
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
