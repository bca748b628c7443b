/** The op table on the CPU backend, at every instruction set level of this processor and with several numbers of threads. */
import { fileURLToPath } from 'node:url';
import { type ContextId, native, OP_NAMES, OPS } from '@metashard/core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type OpCase, opCases } from './op-cases.js';
import { checkOpCase, runOpCase } from './run-op-case.js';

const ISAS = ['portable', 'avx2', 'avx512-vnni', 'amx'] as const;

const addon = native();
addon.loadBackend('cpu', fileURLToPath(new URL('../packages/cpu/build/Release/metashard_cpu.so', import.meta.url)));
const initial = JSON.parse(addon.describeBackend('cpu')) as {
  isa: string;
  isas: string[];
  threads: number;
  missing: Record<string, string>;
};
const byOp = (op: string): OpCase[] => opCases().filter((item) => item.op === op);

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
      for (const item of opCases()) {
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

it('says which instruction sets ran', () => {
  const skipped = Object.entries(initial.missing).map(([isa, reason]) => `${isa} skipped (${reason})`);
  console.log(`cpu: ran ${initial.isas.join(', ')}${skipped.length > 0 ? `; ${skipped.join(', ')}` : ''}`);
  expect(initial.isas).toContain('portable');
  expect(OPS.linear.code).toBe(4);
});
