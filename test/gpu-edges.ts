/**
 * What the CUDA ops do with numbers the host cannot look at without waiting for the device (ids, rows, lengths,
 * tables): they read and write nothing outside the tensors, and what they could not compute is NaN or -1. And what they
 * refuse before a launch. For gpu-ops.ts.
 */
import type { OpName } from '@metashard/core';
import { emptyHost, FILL, type HostTensor, hostTensor, hostValues } from './host-tensor.js';
import { type BuiltCase, ints, Random } from './op-case.js';
import { attentionCase } from './op-cases-attention.js';
import { type OpDevice, runOpCase } from './run-op-case.js';

interface Edge {
  name: string;
  op: OpName;
  build: () => BuiltCase;
  /** What is wrong with the result, or null. */
  judge: (got: { inputs: (HostTensor | null)[]; outputs: HostTensor[] }, built: BuiltCase) => string | null;
}

const floats = (dims: number[], value = 1): HostTensor =>
  hostTensor(dims, Array(dims.reduce((a, b) => a * b, 1)).fill(value));

/** Every output element is one of `wanted`, NaN being equal to itself. */
const all =
  (wanted: (index: number) => number): Edge['judge'] =>
  ({ outputs }) => {
    const values = hostValues(outputs[0] as HostTensor);
    const at = values.findIndex((value, i) => !Object.is(value, wanted(i)));
    return at < 0 ? null : `expected ${wanted(at)} at ${at}, got ${values[at]}`;
  };

const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/**
 * An attention call of two sequences whose input `index` has `value` at `place`, which spoils the first sequence
 * only.
 */
function spoiled(name: string, index: number, place: number, value: number): Edge {
  const shape = {
    N: 2,
    KV: 1,
    D: 8,
    cache: 'float32' as const,
    sequences: [
      [3, 20],
      [2, 5],
    ] as [number, number][],
  };
  const build = (): BuiltCase => {
    const built = attentionCase(new Random(7), shape);
    const tensor = built.inputs[index] as HostTensor;
    const values = hostValues(tensor);
    values[place] = value;
    built.inputs[index] = ints([...tensor.dims], values);
    return built;
  };
  return {
    name: `attention: ${name}`,
    op: 'attention',
    build,
    judge: ({ outputs, inputs }, built) => {
      const rows = hostValues(outputs[0] as HostTensor);
      const second = rows.subarray(5 * 16, 7 * 16);
      if (second.some(Number.isNaN)) return 'expected the second sequence untouched, got NaN';
      if (index === 8) return rows.subarray(2 * 16, 5 * 16).every(Number.isNaN) ? null : 'expected NaN, got numbers';
      const written = hostValues(inputs[3] as HostTensor).filter(
        (x, i) => x !== hostValues(built.inputs[3] as HostTensor)[i],
      );
      return written.length === 2 * 8 ? null : `expected 16 cache elements written, got ${written.length}`;
    },
  };
}

const sampleCase = (penalty: number, id: number, length: number): BuiltCase => ({
  inputs: [
    floats([1, 40]),
    hostTensor([1, 4], [1, 0, 1, penalty]),
    floats([1], 0),
    ints([1, 2], [id, 3]),
    ints([1], [length]),
  ],
  outputs: [emptyHost([1], { dtype: 'int32' })],
  attributes: [],
});

const EDGES: Edge[] = [
  {
    name: 'embedding: ids out of range',
    op: 'embedding',
    build: () => ({ inputs: [ints([4], [1, -1, 3, 2]), floats([3, 5])], outputs: [emptyHost([4, 5])], attributes: [] }),
    judge: all((i) => (i < 5 || i >= 15 ? 1 : Number.NaN)),
  },
  {
    name: 'select_rows: rows out of range',
    op: 'select_rows',
    build: () => ({ inputs: [floats([3, 5]), ints([3], [2, 3, -9])], outputs: [emptyHost([3, 5])], attributes: [] }),
    judge: all((i) => (i < 5 ? 1 : Number.NaN)),
  },
  {
    name: 'sample: an id of the history out of range',
    op: 'sample',
    build: () => sampleCase(1.5, 40, 1),
    judge: all(() => -1),
  },
  { name: 'sample: a penalty of 0', op: 'sample', build: () => sampleCase(0, 1, 1), judge: all(() => -1) },
  { name: 'sample: a history too long', op: 'sample', build: () => sampleCase(1, 1, 3), judge: all(() => -1) },
  {
    name: 'int8_linear: outlier columns out of range',
    op: 'int8_linear',
    build: () => ({
      inputs: [
        floats([1, 4], 127),
        hostTensor([1, 4], [0, 0, 0, 0], { dtype: 'int8' }),
        floats([1]),
        ints([5], [3, -1, 2, 4, 0]),
        hostTensor([2, 4], Array(8).fill(1), { dtype: 'int8', layout: 'packed_int8' }),
        floats([2]),
        null,
      ],
      outputs: [emptyHost([1, 2])],
      attributes: [6, 0],
    }),
    judge: all(() => 1),
  },
  spoiled('a block outside the cache', 8, 0, 1000),
  spoiled('rows beyond the call', 5, 0, 1000),
  spoiled('a context shorter than its queries', 7, 0, 2),
  spoiled('a context beyond the table', 7, 0, 1000),
];

const REFUSALS: { name: string; op: OpName; build: () => BuiltCase; message: RegExp }[] = [
  {
    name: 'add of two shapes',
    op: 'add',
    build: () => ({ inputs: [floats([2, 3]), floats([3, 2])], outputs: [emptyHost([2, 3])], attributes: [] }),
    message: /add: expected b of shape \[2, 3\], got \[3, 2\]/,
  },
  {
    name: 'linear of int8',
    op: 'linear',
    build: () => ({
      inputs: [floats([1, 4]), hostTensor([2, 4], Array(8).fill(1), { dtype: 'int8' })],
      outputs: [emptyHost([1, 2])],
      attributes: [],
    }),
    message: /linear: expected weight as float32 or float16 or bfloat16, got int8/,
  },
  {
    name: 'an activation that does not exist',
    op: 'activation',
    build: () => ({ inputs: [floats([2])], outputs: [emptyHost([2])], attributes: [8] }),
    message: /activation: expected a kind 0 to 7, got 8/,
  },
];

function refusalProblem(device: OpDevice, { op, build, message }: (typeof REFUSALS)[number]): string | null {
  const built = build();
  try {
    const { outputs } = runOpCase(device, op, built);
    return outputs.every(({ bytes }) => bytes.every((byte) => byte === FILL)) ? 'was accepted' : 'was accepted and ran';
  } catch (error) {
    return message.test((error as Error).message) ? null : `expected ${message}, got ${(error as Error).message}`;
  }
}

/** Names of all edges and refusals, and one line for each that does not do what it should. */
export function checkEdges(device: OpDevice): { names: string[]; problems: string[] } {
  const problems: string[] = [];
  const say = (name: string, problem: string | null) => problem !== null && problems.push(`${name}: ${problem}`);
  for (const { name, op, build, judge } of EDGES) {
    const built = build();
    const got = runOpCase(device, op, built);
    say(name, judge(got, built));
    const other = got.inputs.findIndex(
      (tensor, i) =>
        tensor !== null &&
        !(op === 'attention' && (i === 3 || i === 4)) &&
        !sameBytes(tensor.bytes, (built.inputs[i] as HostTensor).bytes),
    );
    say(name, other < 0 ? null : `input ${other} was written`);
  }
  for (const refusal of REFUSALS) say(refusal.name, refusalProblem(device, refusal));
  return { names: [...EDGES, ...REFUSALS].map(({ name }) => name), problems };
}
