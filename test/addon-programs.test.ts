/**
 * Programs of the native addon: symbols, bindings and scratch, errors that name the op, and thousands of mutated
 * programs, none of which may crash. Whole models run by programs are the executors' tests.
 */
import { type DType, type OP_NAMES, opSignature } from '@metashard/core';
import { describe, expect, test } from 'vitest';
import {
  ADD,
  addon,
  dims,
  EMPTY,
  floatsIn,
  inBinding,
  inBuffer,
  MIB,
  openContext,
  randomNumbers,
  readFloats,
  tensors,
  tryCall,
  type Words,
} from './addon-calls.js';

describe('programs', () => {
  /** out = (a + b) + b with a symbolic number of rows; a and out bound, b in a buffer. */
  function addTwice(context: number, b: number): number {
    const rows = (buffer: number, offset = 0): Words => ({ buffer, offset, shape: [-1, 2], strides: [2, 1] });
    return addon.createProgram(
      context,
      Float64Array.from([
        ...[3, 2, 0],
        ...inBinding(rows(0)),
        ...inBuffer(rows(b)),
        ...inBinding(rows(1, 8)),
        ...[ADD, 2, 1, 0, 0, 1, 2],
        ...[ADD, 2, 1, 0, 2, 1, 2],
      ]),
    );
  }

  test('resolves symbols, bindings and offsets anew when they change', () => {
    const context = openContext();
    const b = floatsIn(context, [10, 20, 30, 40, 50, 60]);
    const program = addTwice(context, b);
    const a = floatsIn(context, [1, 2, 3, 4, 5, 6]);
    const out = addon.alloc(context, 64, 2);
    const calls = addon.opCalls(ADD);
    addon.runProgram(program, dims(2), Float64Array.of(a, 0, out, 0), 0, 2);
    expect(readFloats(out, 4, 8)).toEqual([21, 42, 63, 84]);
    addon.runProgram(program, dims(1), Float64Array.of(a, 8, out, 0), 0, 1);
    expect(readFloats(out, 4, 8)).toEqual([13, 24, 63, 84]);
    addon.runProgram(program, dims(0), Float64Array.of(a, 0, out, 0), 0, 2);
    addon.runProgram(program, dims(3), Float64Array.of(out, 8, a, 0), 0, 0);
    expect(addon.opCalls(ADD) - calls).toBe(5);
    const other = addon.alloc(context, 64, 2);
    addon.runProgram(program, dims(1), Float64Array.of(a, 0, other, 16), 0, 2);
    expect(readFloats(other, 2, 24)).toEqual([21, 42]);
  });

  test('errors name the op, and later runs are right again', () => {
    const context = openContext();
    const program = addTwice(context, floatsIn(context, [10, 20]));
    const [a, out] = [floatsIn(context, [1, 2, 3, 4]), addon.alloc(context, 64, 2)];
    const bindings = Float64Array.of(a, 0, out, 0);
    const message = (run: () => void) => tryCall(run)?.message;
    const run = (
      ...[d = dims(1), words = bindings, first = 0, end = 2]: [Int32Array?, Float64Array?, number?, number?]
    ) => message(() => addon.runProgram(program, d, words, first, end));
    expect(run(dims(2))).toMatch(/^runProgram: op 0 \(add\): input 1: expected a tensor within its buffer of 8 bytes/);
    expect(run(dims(1), Float64Array.of(a, 0, 0, 0), 1)).toMatch(/^runProgram: op 1 \(add\): input 0: .*binding 1/);
    expect(run(dims(1), Float64Array.of(a, 0))).toMatch(/2 pairs/);
    expect(run(dims(1), Float64Array.of(a, 2, out, 0))).toMatch(/that 4 divides/);
    expect(run(dims(1), Float64Array.of(a, 2 ** 52, out, 0))).toMatch(/within its buffer/);
    expect(run(dims(-1))).toMatch(/dims/);
    expect(run(new Int32Array(2))).toMatch(/dims/);
    expect(run(dims(1), bindings, 1, 3)).toMatch(/end/);
    expect(run(dims(1), bindings, 2, 1)).toMatch(/first/);
    expect(run(dims(1), Float64Array.of(floatsIn(openContext(), [1, 2]), 0, out, 0))).toMatch(/program's context/);
    expect(run()).toBeUndefined();
    expect(readFloats(out, 2, 8)).toEqual([21, 42]);
    addon.free(out);
    expect(run()).toMatch(/binding 1: expected the id of a live buffer/);
  });

  test('scratch: too little is refused before the op runs', () => {
    const context = openContext();
    const [K, N] = [70, 20];
    const buffer = (bytes: number) => addon.alloc(context, bytes, 0);
    const [x, CB, out] = [buffer(K * 4), buffer(K * N), buffer(N * 4)];
    const code = opSignature('int8_matmul').code;
    const inputs = tensors({ buffer: x, dtype: 'int8', shape: [1, K] }, { buffer: CB, dtype: 'int8', shape: [N, K] });
    const outputs = tensors({ buffer: out, dtype: 'int32', shape: [1, N] });
    const need = addon.opScratch(context, code, inputs, outputs, EMPTY);
    const call = (scratch: number) => tryCall(() => addon.callOp(context, code, inputs, outputs, EMPTY, scratch));
    expect(call(need === 0 ? 0 : buffer(need))).toBeUndefined();
    if (need > 0) expect(call(buffer(need - 1))?.message).toMatch(/^callOp: int8_matmul: scratch: expected at least/);
    expect(call(addon.alloc(openContext(), need, 0))?.message).toMatch(/of this context/);
  });

  test('encodings that cannot be right are refused', () => {
    const context = openContext();
    const a = floatsIn(context, [1, 2]);
    const create = (...code: number[]) => tryCall(() => addon.createProgram(context, Float64Array.from(code)))?.message;
    const t = inBuffer({ buffer: a, shape: [1, 2] });
    const op = [ADD, 2, 1, 0, 0, 0, 0];
    expect(create(1, 1, 0, ...t, ...op)).toBeUndefined();
    expect(create()).toMatch(/at least 3/);
    expect(create(2, 1, 0, ...t, ...op)).toMatch(/2 tensors/);
    expect(create(1e9, 1, 0, ...t)).toMatch(/tensor count/);
    expect(create(1, 2, 0, ...t, ...op)).toMatch(/2 ops|op 1/);
    expect(create(1, 1, 0, ...t, ...op, 0)).toMatch(/expected 24 numbers, got 25/);
    expect(create(1, 1, 0, ...t, 99, 2, 1, 0, 0, 0, 0)).toMatch(/op code/);
    expect(create(1, 1, 0, ...t, ADD, 3, 1, 0, 0, 0, 0, 0)).toMatch(/input count/);
    expect(create(1, 1, 0, ...t, ADD, 2, 1, 0, 0, 1, 0)).toMatch(/tensor index/);
    expect(create(1, 1, 7, ...t, ...op)).toMatch(/scratch/);
    expect(create(1, 1, 0, ...inBuffer({ buffer: a, shape: [2, 2] }), ...op)).toMatch(/within its buffer/);
    expect(create(1, 1, 0, ...inBuffer({ buffer: a, shape: [1, 2], offset: 2 }), ...op)).toMatch(/that 4 divides/);
    expect(create(1, 1, 0, ...inBuffer({ buffer: a, shape: [-4, 2] }), ...op)).toMatch(/dimension/);
    expect(create(1, 1, 0, ...inBuffer({ buffer: a, shape: [2 ** 52, 2 ** 52], strides: [0, 0] }), ...op)).toMatch(
      /within/,
    );
    expect(create(1, 1, 0, 2, ...t.slice(1), ...op)).toMatch(/absent/);
    expect(create(1, 1, 0, ...inBuffer({ buffer: a, dtype: 'float32', packed: true, shape: [1, 2] }), ...op)).toMatch(
      /int8 matrix/,
    );
  });

  test('4000 mutated programs: each is refused, fails or runs', () => {
    const seed = Date.now() % 1e6;
    const random = randomNumbers(seed);
    const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;
    const context = openContext(64 * MIB);
    const memory = addon.alloc(context, 1 << 16, 0);
    addon.zero(memory, 0, 1 << 16);
    const scratch = addon.alloc(context, 1 << 20, 3);
    const good = mutationSeed(memory, scratch);
    const strange = [0, 1, 2, 3, 4, 8, 16, 22, 64, 255, 4096, 65535, -1, -2, -3, -4, 0.5, 2 ** 31, 2 ** 53, 1e300];
    const whole = addon.createProgram(context, Float64Array.from(good));
    addon.runProgram(whole, dims(3), Float64Array.of(memory, 0), 0, good[1] as number);
    const outcomes = { refused: 0, failed: 0, ran: 0 };
    for (let round = 0; round < 4000; round++) {
      const code = Float64Array.from(good);
      for (let n = 1 + Math.floor(random() * 3); n > 0; n--) {
        const at = Math.floor(random() * code.length);
        code[at] = random() < 0.5 ? pick([...strange, Number.NaN, memory]) : (code[at] as number) + pick([-1, 1]);
      }
      let program = 0;
      if (tryCall(() => (program = addon.createProgram(context, code))) !== undefined) {
        outcomes.refused++;
        continue;
      }
      const run = () =>
        addon.runProgram(program, dims(pick([0, 1, 3])), Float64Array.of(memory, 0), 0, code[1] as number);
      outcomes[tryCall(run) === undefined ? 'ran' : 'failed']++;
      addon.freeProgram(program);
    }
    expect(outcomes.refused, `seed ${seed}`).toBeGreaterThan(500);
    expect(outcomes.failed, `seed ${seed}`).toBeGreaterThan(100);
    expect(outcomes.ran, `seed ${seed}`).toBeGreaterThan(100);
  });
});

/** A program over several ops in one buffer, half of its tensors bound. */
function mutationSeed(memory: number, scratch: number): number[] {
  const tokens = (dtype: DType, offset: number, ...rest: number[]) =>
    inBinding({ buffer: 0, offset, dtype, shape: [-1, ...rest], strides: [rest[0] ?? 1, 1] });
  const fixed = (dtype: DType, offset: number, ...shape: number[]) =>
    inBuffer({ buffer: memory, offset, dtype, shape });
  const program = [
    tokens('int32', 0), // 0 ids
    fixed('float32', 1024, 8, 16), // 1 table
    tokens('float32', 4096, 16), // 2 x
    fixed('float32', 2048, 16), // 3 weight and bias
    tokens('float32', 8192, 16), // 4 y
    fixed('float16', 3072, 8, 16), // 5 linear weight
    tokens('float32', 12288, 8), // 6 logits
    tokens('int32', 16384), // 7 out
    tokens('int8', 20480, 16), // 8 CA
    tokens('float32', 24576), // 9 SCA
    fixed('int32', 28672, 17), // 10 outlier columns
    fixed('int8', 32768, 8, 16), // 11 CB
    fixed('float32', 36864, 8), // 12 SCB
    [2, ...new Array<number>(13).fill(0)], // 13 absent
  ];
  const op = (name: (typeof OP_NAMES)[number], inputs: number[], outputs: number[], attributes: number[] = []) => {
    const counts = [inputs.length, outputs.length, attributes.length];
    return [opSignature(name).code, ...counts, ...inputs, ...outputs, ...attributes];
  };
  const ops = [
    op('embedding', [0, 1], [2]),
    op('layer_norm', [2, 3, 3], [4], [1e-5]),
    op('int8_quantize', [4], [8, 9, 10], [6, 0]),
    op('int8_linear', [4, 8, 9, 10, 11, 12, 13], [6], [6, 0]),
    op('linear', [4, 5, 13], [6]),
    op('activation', [6], [6], [2]),
    op('add', [2, 4], [4]),
    op('argmax', [6], [7]),
  ];
  return [program.length, ops.length, scratch, ...program.flat(), ...ops.flat()];
}
