/** Cases of the ops that treat every element alike: add, mul, copy, activations and casts. */
import { ACTIVATION_KINDS, type DType } from '@metashard/core';
import { elements, emptyHost, hostTensor, type Placement } from './host-tensor.js';
import { type AddCase, apart, FLOATS, floats, NASTY } from './op-case.js';

export function addElementwise(add: AddCase): void {
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
  for (const dims of [[3, 7], [40_003]]) {
    for (const place of [0, 1]) {
      for (const op of ['add', 'mul'] as const) {
        add(op, `[${dims}] in place of ${'ab'[place]}`, 0, (r) => {
          const inputs = [floats(r, dims), floats(r, dims)];
          return { inputs, outputs: inputs.slice(place, place + 1), attributes: [] };
        });
      }
    }
    add('activation', `[${dims}] in place`, 2e-6, (r) => {
      const inputs = [floats(r, dims)];
      return { inputs, outputs: inputs, attributes: [4] };
    });
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

export function addCasts(add: AddCase): void {
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
