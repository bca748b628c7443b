/**
 * tinybench over the case table of the tests (test/op-cases.ts): every case is checked against the reference maths once
 * more and then timed, on the CPU backend. Its sizes are those at which kernels break, so the times say what a call of
 * an op costs before its size does; sizes of real models are op-rows.mjs.
 *
 *   node bench/cases.mjs [FILTER] [--threads 2] [--time 20] [--json]
 *
 * FILTER: only cases whose name contains it. --time: milliseconds a case.
 */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { DeviceContext, ensureBackend, native, parseDevice } from 'metashard';
import { Bench } from 'tinybench';
import { median } from './statistics.mjs';
import { markdownTable } from './table.mjs';

const COMPILER = fileURLToPath(new URL('../node_modules/typescript/bin/tsc', import.meta.url));
const PROJECT = fileURLToPath(new URL('tsconfig.json', import.meta.url));

/** The case table and what runs a case, compiled from the tests' TypeScript. */
async function loadCaseTable() {
  execFileSync(process.execPath, [COMPILER, '-p', PROJECT], { stdio: ['ignore', process.stderr, process.stderr] });
  const [{ opCases }, runner] = await Promise.all([import('./dist/op-cases.js'), import('./dist/run-op-case.js')]);
  return { cases: opCases(), ...runner };
}

/** Median microseconds of each case: { isa, threads, results: [{ name, op, us }] }. Throws where one is wrong. */
export async function runCases({ threads = 2, time = 20, filter = '' }) {
  ensureBackend('cpu');
  native().configureBackend('cpu', 'threads', String(threads));
  const { isa } = JSON.parse(native().describeBackend('cpu'));
  const { cases, checkOpCase, PlacedCase } = await loadCaseTable();
  const context = new DeviceContext(parseDevice('cpu'));
  const device = { addon: native(), context: context.id };
  const results = [];
  try {
    for (const item of cases.filter(({ name }) => name.includes(filter))) {
      const [problem] = checkOpCase(device, item);
      if (problem !== undefined) throw new Error(`${item.name}: ${problem}`);
      results.push({
        name: item.name,
        op: item.op,
        us: await timeCase(item, new PlacedCase(device, item.op, item.build()), time),
      });
    }
    return { isa, threads, results };
  } finally {
    context.close();
  }
}

async function timeCase({ name }, placed, time) {
  const bench = new Bench({ time, iterations: 16, warmupTime: time / 8, warmupIterations: 4, throws: true });
  bench.add(name, () => placed.run());
  try {
    const [task] = await bench.run();
    return task.result.latency.p50 * 1e3;
  } finally {
    placed.dispose();
  }
}

/** A row per op: its cases, and the fastest, the median and the slowest of their medians. */
export function casesTable({ results }) {
  const ops = [...new Set(results.map(({ op }) => op))];
  const rows = ops.map((op) => {
    const own = results.filter((result) => result.op === op).toSorted((a, b) => a.us - b.us);
    const slowest = own.at(-1);
    const times = [own[0].us, median(own.map(({ us }) => us)), slowest.us].map((us) => us.toFixed(2));
    return [op, own.length, ...times, slowest.name.slice(op.length + 2)];
  });
  return markdownTable(['op', 'cases', 'fastest µs', 'median µs', 'slowest µs', 'the slowest'], rows);
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      threads: { type: 'string', default: '2' },
      time: { type: 'string', default: '20' },
      json: { type: 'boolean', default: false },
    },
  });
  const run = await runCases({ threads: Number(values.threads), time: Number(values.time), filter: positionals[0] });
  console.log(values.json ? JSON.stringify(run, null, 2) : casesTable(run));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
