/**
 * The op table on the CPU backend, at every instruction set level of this processor and with several numbers of
 * threads.
 */
import { fileURLToPath } from 'node:url';
import { type ContextId, DTYPES, type DType, native, OP_NAMES, type OpName } from '@metashard/core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { elements, emptyHost, type HostTensor, hostTensor } from './host-tensor.js';
import { type BuiltCase, type OpCase, Random } from './op-case.js';
import { cpuOnlyCases, opCases } from './op-cases.js';
import { attentionCase } from './op-cases-attention.js';
import { checkOpCase, PlacedCase, runOpCase } from './run-op-case.js';

const ISAS = ['portable', 'avx2', 'avx512-vnni', 'amx', 'amx-emulated'] as const;

const addon = native();
addon.loadBackend('cpu', fileURLToPath(new URL('../packages/cpu/build/Release/metashard_cpu.so', import.meta.url)));
const initial = JSON.parse(addon.describeBackend('cpu')) as {
  isa: string;
  isas: string[];
  threads: number;
  missing: Record<string, string>;
};
const cases = [...opCases(), ...cpuOnlyCases()];
const byOp = (op: string): OpCase[] => cases.filter((item) => item.op === op);

let context: ContextId;
beforeAll(() => {
  context = addon.openContext('cpu', 0, 0);
});
afterAll(() => {
  addon.configureBackend('cpu', 'isa', initial.isa);
  addon.configureBackend('cpu', 'threads', String(initial.threads));
  addon.closeContext(context);
});

it('has cases for every op', () => {
  expect(OP_NAMES.filter((op) => byOp(op).length === 0)).toEqual([]);
});

for (const isa of ISAS) {
  const reason = initial.missing[isa];
  const title = `${isa}${reason === undefined ? '' : `: not run, ${reason}`}`;
  describe.skipIf(reason !== undefined)(title, () => {
    beforeAll(() => addon.configureBackend('cpu', 'isa', isa));
    it.each(OP_NAMES)('%s', (op) => {
      for (const item of byOp(op))
        expect(checkOpCase({ addon, context }, item, isa === 'portable'), item.name).toEqual([]);
    });

    it('gives the same bits whatever the number of threads', () => {
      for (const item of cases) {
        const built = item.build();
        const run = (threads: number): Buffer => {
          addon.configureBackend('cpu', 'threads', String(threads));
          const { outputs } = runOpCase({ addon, context }, item.op, built);
          if (item.op === 'int8_quantize') outputs.pop(); // its tail is undefined
          return Buffer.concat(outputs.map(({ bytes }) => bytes));
        };
        const one = run(1);
        for (const threads of [2, 5]) expect(Buffer.compare(run(threads), one), item.name).toBe(0);
      }
      addon.configureBackend('cpu', 'threads', String(initial.threads));
    });
  });
}

describe('refuses', () => {
  const call = (op: OpName, built: BuiltCase) => () => runOpCase({ addon, context }, op, built);
  const f = (dims: number[], placement = {}) => hostTensor(dims, new Float64Array(elements(dims)), placement);
  const i = (...values: number[]) => hostTensor([values.length], values, { dtype: 'int32' });
  const built = (inputs: (HostTensor | null)[], outputs: HostTensor[], attributes: number[] = []): BuiltCase => ({
    inputs,
    outputs,
    attributes,
  });

  it.each<[string, OpName, BuiltCase, RegExp]>([
    [
      'a dtype',
      'linear',
      built([f([2, 8], { dtype: 'float16' }), f([4, 8]), null], [f([2, 4])]),
      /expected x as float32, got float16/,
    ],
    ['a rank', 'linear', built([f([8]), f([4, 8]), null], [f([2, 4])]), /expected x of rank 2, got \[8\]/],
    [
      'a shape',
      'linear',
      built([f([2, 8]), f([4, 9]), null], [f([2, 4])]),
      /expected weight of shape \[4, 8\], got \[4, 9\]/,
    ],
    ['an output shape', 'rms_norm', built([f([2, 8]), f([8])], [f([2, 7])], [0]), /expected out of shape \[2, 8\]/],
    [
      'a stride',
      'linear',
      built([f([2, 8], { strides: [1, 2] }), f([4, 8]), null], [f([2, 4])]),
      /x with stride 1, got stride 2/,
    ],
    ['a missing input', 'rms_norm', built([f([2, 8]), null], [f([2, 8])], [0]), /rms_norm: expected weight/],
    ['attributes', 'rms_norm', built([f([2, 8]), f([8])], [f([2, 8])]), /expected 1 attributes, got 0/],
    ['an id', 'embedding', built([i(0, 5), f([5, 8])], [f([2, 8])]), /expected ids from 0 to 4, got 5 at 1/],
    ['a row', 'select_rows', built([f([5, 8]), i(-1)], [f([1, 8])]), /expected rows from 0 to 4, got -1/],
    [
      'a threshold',
      'int8_quantize',
      built([f([1, 4])], [f([1, 4], { dtype: 'int8' }), f([1]), i(0, 0, 0, 0, 0)], [-1, 0]),
      /at least 0, got -1/,
    ],
    ['a kind', 'activation', built([f([4])], [f([4])], [8]), /expected a kind 0 to 7, got 8/],
    ['a cast', 'cast', built([f([4])], [i(0, 0, 0, 0)]), /expected out as float32 or float16 or bfloat16, got int32/],
    [
      'a layout',
      'pack_int8',
      built([f([4, 4], { dtype: 'int8' })], [f([4, 4], { dtype: 'int8' })]),
      /expected packed in the packed layout/,
    ],
    [
      'an address within an element',
      'rms_norm',
      built([{ ...f([9]), dims: [1, 8], strides: [8, 1], offset: 0.5 }, f([8])], [f([1, 8])], [0]),
      /that 4 divides/,
    ],
  ])('%s', (_, op, wrong, message) => {
    expect(call(op, wrong)).toThrow(message);
  });

  it.each<[string, Partial<Record<number, HostTensor>>, RegExp]>([
    ['rows beyond the tokens', { 6: i(9) }, /within 5 tokens/],
    ['a context shorter than its queries', { 7: i(2) }, /context of at least 3 positions/],
    ['an unknown block', { 8: hostTensor([1, 1], [7], { dtype: 'int32' }) }, /expected blocks from 0 to 3/],
    ['a short block table', { 7: i(17) }, /block_tables of at least 2 columns/],
  ])('attention with %s', (_, changes, message) => {
    const item = attentionCase(new Random(1), { N: 2, KV: 2, D: 8, cache: 'float32', sequences: [[3, 3]] });
    for (const [index, tensor] of Object.entries(changes)) item.inputs[Number(index)] = tensor as HostTensor;
    expect(call('attention', item)).toThrow(message);
  });

  it('settings it does not know or have', () => {
    expect(() => addon.configureBackend('cpu', 'isa', 'sse9')).toThrow(
      /expected portable, avx2, avx512-vnni, amx or amx-emulated, got "sse9"/,
    );
    expect(() => addon.configureBackend('cpu', 'threads', '0')).toThrow(/from 1 to 256, got "0"/);
    expect(() => addon.configureBackend('cpu', 'colour', 'red')).toThrow(/got "colour"/);
    for (const isa of Object.keys(initial.missing)) {
      expect(() => addon.configureBackend('cpu', 'isa', isa)).toThrow(initial.missing[isa] as string);
    }
  });
});

/** Views whose elements lie more than 2^31 elements apart, on memory that is never touched in between. */
const spacious = addon.deviceInfo('cpu', 0).totalBytes > 12 * 2 ** 30;
describe.skipIf(!spacious)('offsets beyond 2^31 elements', () => {
  const far = 2 ** 30 + 16; // row 2 lies 2^31 + 32 elements from row 0
  let big: number;
  beforeAll(() => {
    big = addon.alloc(context, (2 * far + 64) * 4, 4);
  });
  afterAll(() => addon.free(big));

  /** Runs `op` with input `index` moved to rows `far` elements apart and compares with the same rows side by side. */
  const compare = (op: OpName, inputs: HostTensor[], index: number, outputs: HostTensor[], attributes: number[]) => {
    const near = inputs[index] as HostTensor;
    const width = DTYPES[near.dtype].bytes;
    const row = (near.strides[0] as number) * width;
    const rows = near.dims[0] as number;
    for (let r = 0; r < rows; r++) addon.write(big, r * far * width, near.bytes.subarray(r * row, (r + 1) * row));
    const expected = runOpCase({ addon, context }, op, { inputs, outputs, attributes });
    const placed = new PlacedCase({ addon, context }, op, { inputs, outputs, attributes });
    const strides = [far, ...near.strides.slice(1)];
    placed.move(index, [big, 0, DTYPES[near.dtype].code, 0, near.dims.length, ...near.dims], strides);
    placed.run();
    for (const [o, output] of outputs.entries()) expect(placed.read(output).bytes).toEqual(expected.outputs[o]?.bytes);
    placed.dispose();
  };

  it.each(initial.isas)('%s', (isa) => {
    addon.configureBackend('cpu', 'isa', isa);
    const r = new Random(7);
    const f = (dims: number[], dtype: DType = 'float32') => hostTensor(dims, r.normals(elements(dims)), { dtype });
    const q = (dims: number[]) => hostTensor(dims, r.bytes(elements(dims)), { dtype: 'int8' });
    const cache = f([3, 1, 4, 8]);
    const ints = (dims: number[], values: number[]) => hostTensor(dims, values, { dtype: 'int32' });
    compare('copy', [f([3, 40])], 0, [emptyHost([3, 40])], []);
    compare('add', [f([3, 40]), f([3, 40])], 1, [emptyHost([3, 40])], []);
    compare('embedding', [ints([2], [2, 1]), f([3, 40], 'float16')], 1, [emptyHost([2, 40])], []);
    compare('select_rows', [f([3, 40]), ints([2], [2, 1])], 0, [emptyHost([2, 40])], []);
    compare('layer_norm', [f([3, 40]), f([40])], 0, [emptyHost([3, 40])], [1e-5]);
    compare('linear', [f([3, 40]), f([17, 40])], 0, [emptyHost([3, 17])], []);
    compare('linear', [f([5, 40]), f([3, 40], 'bfloat16')], 1, [emptyHost([5, 3])], []);
    compare('int8_matmul', [q([2, 40]), q([3, 40])], 1, [emptyHost([2, 3], { dtype: 'int32' })], []);
    compare('quantize_weight', [f([3, 40])], 0, [emptyHost([3, 40], { dtype: 'int8' }), emptyHost([3])], [0]);
    const [x, one] = [f([1, 1, 8]), (value: number) => ints([1], [value])];
    compare(
      'attention',
      [x, f([1, 1, 8]), f([1, 1, 8]), cache, f([3, 1, 4, 8]), one(0), one(1), one(12), ints([1, 3], [1, 2, 0])],
      3,
      [emptyHost([1, 1, 8])],
      [1, 1, 0, 0, 0],
    );
    addon.configureBackend('cpu', 'isa', initial.isa);
  });
});

it('says which instruction sets ran', () => {
  const skipped = Object.entries(initial.missing).map(([isa, reason]) => `${isa} skipped (${reason})`);
  console.log(`cpu: ran ${initial.isas.join(', ')}${skipped.length > 0 ? `; ${skipped.join(', ')}` : ''}`);
  expect(initial.isas).toContain('portable');
});
