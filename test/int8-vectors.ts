/**
 * Golden vectors of LLM.int8(), numbered 66 to 76 as in the project's LLM.int8() notes, section 3 G: quantized rows,
 * and one layer with what it gives. The reference maths, the cpu's kernels and Linear8bitLt are all held against them.
 */
import { type NestedArray, type Tensor, tensor } from '@metashard/core';

/** A float16 tensor. */
export const half = (values: NestedArray): Tensor => tensor(values, { dtype: 'float16' });

/** Rows of x, the threshold, and what they become. Without a threshold there are no outlier columns. */
export interface RowsVector {
  name: string;
  x: number[][];
  threshold: number;
  CA: number[][];
  SCA: number[];
  columns: number[];
}

export const ROWS: readonly RowsVector[] = [
  {
    name: '66',
    x: [[1.2, -0.5, -4.3, 1.2, -3.1, 0.8, 2.4, 5.4]],
    threshold: 0,
    CA: [[28, -12, -101, 28, -73, 19, 56, 127]],
    SCA: [5.3984375],
    columns: [],
  },
  {
    name: '67: half to even',
    x: [[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]],
    threshold: 0,
    CA: [[127, 0, 2, 2, 0, -2, -2, 126]],
    SCA: [127],
    columns: [],
  },
  {
    name: '68',
    x: [
      [1, -2, 6, 0.5, 3, -5.99609375],
      [0.25, 1.5, 0.1, -7.5, 0, 2],
    ],
    threshold: 6,
    CA: [
      [21, -42, 0, 0, 64, -127],
      [16, 95, 0, 0, 0, 127],
    ],
    SCA: [5.99609375, 2],
    columns: [2, 3],
  },
  {
    name: '69: without a threshold',
    x: [
      [1, -2, 6, 0.5, 3, -5.99609375],
      [0.25, 1.5, 0.1, -7.5, 0, 2],
    ],
    threshold: 0,
    CA: [
      [21, -42, 127, 11, 64, -127],
      [4, 25, 2, -127, 0, 34],
    ],
    SCA: [6, 7.5],
    columns: [],
  },
  {
    name: '70: others in an outlier column count in the scale',
    x: [
      [1, -2, 0.5, 5, 3, -1],
      [0.25, 1.5, 0.1, -7.5, 0, 2],
    ],
    threshold: 6,
    CA: [
      [25, -51, 13, 0, 76, -25],
      [16, 95, 6, 0, 0, 127],
    ],
    SCA: [5, 2],
    columns: [3],
  },
  {
    name: '71: one row',
    x: [[0.25, 1.5, 0.1, -7.5, 0, 2]],
    threshold: 6,
    CA: [[16, 95, 6, 0, 0, 127]],
    SCA: [2],
    columns: [3],
  },
  {
    name: '72: all outliers',
    x: [[8, -9, 7, 6]],
    threshold: 6,
    CA: [[0, 0, 0, 0]],
    SCA: [0],
    columns: [0, 1, 2, 3],
  },
  { name: '72: a row of zeros', x: [[0, 0, 0, 0]], threshold: 6, CA: [[0, 0, 0, 0]], SCA: [0], columns: [] },
];

/** The layer of vectors 73 to 76 in float16, its weights in int8, and its outputs. */
export const LAYER = {
  x: [
    [1, -2, 8, 0.5],
    [0.25, 1.5, -0.5, 3],
  ],
  weight: [
    [0.5, -1, 0.25, 2],
    [1, 1, -1, 1],
    [-0.125, 0.75, 0.5, -0.25],
  ],
  bias: [0.1, -0.2, 0.3],
  CB: [
    [32, -64, 16, 127],
    [127, 127, -127, 127],
    [-21, 127, 85, -42],
  ],
  SCB: [2, 1, 0.75],
  /** 73: threshold 6. */
  outWithOutliers: [
    [5.6484375, -8.6875, 2.56640625],
    [4.58203125, 5.0703125, 0.40673828],
  ],
  /** 74: threshold 0. 75: the second row is also what it gives alone with threshold 6. */
  outWithout: [
    [5.6640625, -8.703125, 2.5546875],
    [4.58203125, 5.06640625, 0.40869141],
  ],
};

/** The most steps between a float16 number and the one that was expected, as their bits count them. */
export function halfSteps(got: Tensor, expected: number[][]): number {
  const bits = (t: Tensor): number[] =>
    Array.from(t.toTypedArray() as Uint16Array, (b) => (b & 0x8000 ? -(b & 0x7fff) : b));
  const want = bits(half(expected));
  return Math.max(...bits(got).map((b, i) => Math.abs(b - (want[i] as number))));
}
