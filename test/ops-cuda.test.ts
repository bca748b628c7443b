/**
 * The op table on the CUDA backend over an emulated GPU, held against the reference and the plain CPU ops, and its bits
 * over six schedules of threads, blocks and streams. A driver is opened once per process and reads its settings then,
 * so each run is a process: gpu-check.ts, the program that checks real GPUs, compiled.
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { OP_NAMES } from '@metashard/core';
import { beforeAll, describe, expect, it } from 'vitest';
import type { OpsReport } from './gpu-ops.js';
import { opCases } from './op-cases.js';

const here = fileURLToPath(new URL('.', import.meta.url));

/**
 * Standard output of a program that ends with 0, or 1 where `mayFail`; the machine's own METASHARD_* are not passed
 * on.
 */
function run(args: string[], variables: Record<string, string> = {}, mayFail = false): string {
  const clean = Object.entries(process.env).filter(([name]) => !name.startsWith('METASHARD_'));
  const env = { ...Object.fromEntries(clean), ...variables };
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: here, env, encoding: 'utf8' });
  expect(status, `${stdout}${stderr}`).toBeLessThanOrEqual(mayFail ? 1 : 0);
  return stdout;
}

function check(devices: string, words: string, ...options: string[]): OpsReport {
  const variables = { METASHARD_CUDA_EMULATED: devices, METASHARD_EMULATOR: words };
  const report = JSON.parse(run(['dist/gpu/gpu-check.js', 'ops', '--json', ...options], variables, true)) as {
    ops: OpsReport;
  };
  return report.ops;
}

let report: OpsReport;
beforeAll(() => {
  run(['../node_modules/typescript/bin/tsc', '-p', 'tsconfig.gpu.json']);
  report = check('1x1GiB', '');
}, 600_000);

it('runs on an emulated device', () => {
  expect(report).toMatchObject({ emulated: true, computeCapability: '8.0' });
});

describe('gives what the reference and the plain CPU ops give', () => {
  it.each(OP_NAMES)('%s', (op) => {
    expect(report.ops[op]?.cases ?? 0).toBe(opCases().filter((item) => item.op === op).length);
    expect(report.problems.filter((problem) => problem.startsWith(`${op}: `))).toEqual([]);
  });
});

it('touches nothing outside the tensors, whatever ids, rows, lengths and tables hold, and refuses what cannot be', () => {
  expect(report.edges.length).toBeGreaterThan(10);
  expect(report.problems).toEqual([]);
});

it('gives the same bits in six schedules, late ones among them', () => {
  for (const words of ['seed=1', 'seed=2', 'seed=3', 'seed=4', 'lazy,seed=5', 'lazy,seed=6']) {
    const again = check('1x1GiB', words, '--digest');
    expect(again.problems, words).toEqual([]);
    expect(again.digest, words).toBe(report.digest);
  }
});
