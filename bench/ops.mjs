/**
 * Times every op of the CPU backend alone, through the addon, and holds each to its floor: the bytes it must read over the machine's plain read speed, or
 * its operations over the registers' peak, whichever takes longer, both measured beside it in the same run. Weights rotate through more than 512 MB.
 *
 *   node bench/ops.mjs [FILTER] [--threads 2] [--time 400] [--folder DIR] [--json]
 *
 * FILTER: only rows whose name contains it. --time: milliseconds a row. --folder keeps the compiled probe.
 */
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ensureBackend, native, OP_NAMES } from 'metashard';
import { Bench } from 'tinybench';
import { Ceilings } from './ceilings.mjs';
import { OP_ROWS, Stage } from './op-rows.mjs';
import { markdownTable } from './table.mjs';

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** One row's milliseconds: tinybench's median over runs that take turns with the alternatives. */
async function timeRow({ name, build }, time) {
  const stage = new Stage();
  try {
    const alternatives = build(stage);
    let turn = 0;
    const bench = new Bench({ time, iterations: 8, warmupTime: time / 8, warmupIterations: 2, throws: true });
    bench.add(name, () => {
      const calls = alternatives[turn++ % alternatives.length];
      for (const call of calls) call();
    });
    const [task] = await bench.run();
    return task.result.latency.p50;
  } finally {
    stage.close();
  }
}

/** Results of all rows: { name, op, ms, gigabytes, tera, floorMs, outliers } (GB/s, 10¹² operations a second; floorMs null where there is none). */
export async function runOps({ threads, time, folder, filter = '', onRow = () => {} }) {
  ensureBackend('cpu');
  native().configureBackend('cpu', 'threads', String(threads));
  const { isa } = JSON.parse(native().describeBackend('cpu'));
  const ceilings = new Ceilings(folder, threads);
  const results = [];
  try {
    for (const row of OP_ROWS.filter(({ name }) => name.includes(filter))) {
      const before = await measureCeilings(ceilings, isa);
      const ms = await timeRow(row, time);
      const after = await measureCeilings(ceilings, isa);
      const result = judge(row, ms, [before, after]);
      results.push(result);
      onRow(result);
    }
    return { isa, threads, results, ceilings: summarize(results) };
  } finally {
    ceilings.close();
  }
}

async function measureCeilings(ceilings, isa) {
  return { read: await ceilings.read(), int8: await ceilings.int8(isa), float: await ceilings.float() };
}

/** The row beside its floor; the better of the two measurements around it counts, so that a disturbed one flatters nothing. */
function judge({ name, op, operations = 0, unit, bytes, floor = true, outliers }, ms, measured) {
  const best = (what) => Math.max(...measured.map((one) => one[what]));
  const readMs = bytes / best('read') / 1e6;
  const computeMs = unit === undefined ? 0 : operations / best(unit) / 1e9;
  return {
    name,
    op,
    ms,
    gigabytes: bytes / ms / 1e6,
    tera: operations / ms / 1e9,
    floorMs: floor ? Math.max(readMs, computeMs) : null,
    bound: computeMs > readMs ? unit : 'read',
    outliers,
    ceilings: { read: best('read'), int8: best('int8'), float: best('float') },
  };
}

function summarize(results) {
  const of = (what) => median(results.map((result) => result.ceilings[what]));
  return results.length === 0 ? {} : { read: of('read'), int8: of('int8'), float: of('float') };
}

/** Rows as the documentation shows them. */
export function opsTable({ results }) {
  const rows = results.map(({ name, ms, gigabytes, tera, floorMs, bound, outliers }) => [
    outliers === undefined ? name : `${name} (${outliers} outlier columns)`,
    formatMicroseconds(ms),
    gigabytes.toFixed(1),
    tera === 0 ? '–' : (tera * 1e3).toFixed(0),
    floorMs === null ? '–' : `${(ms / floorMs).toFixed(2)} × ${bound}`,
  ]);
  return markdownTable(['op', 'median µs', 'GB/s', 'GOPS', 'time ÷ floor'], rows);
}

const formatMicroseconds = (ms) => (ms * 1e3).toFixed(ms < 0.1 ? 2 : 0);

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      threads: { type: 'string', default: '2' },
      time: { type: 'string', default: '400' },
      folder: { type: 'string', default: join(tmpdir(), 'metashard-bench') },
      json: { type: 'boolean', default: false },
    },
  });
  const unmeasured = OP_NAMES.filter((op) => !OP_ROWS.some((row) => row.op === op));
  if (unmeasured.length > 0) throw new Error(`ops: expected a row for every op, got none for ${unmeasured.join(', ')}`);
  const onRow = ({ name, ms, floorMs }) =>
    console.error(
      `${name}: ${formatMicroseconds(ms)} µs${floorMs === null ? '' : `, ${(ms / floorMs).toFixed(2)} × its floor`}`,
    );
  const run = await runOps({
    threads: Number(values.threads),
    time: Number(values.time),
    folder: values.folder,
    filter: positionals[0],
    onRow,
  });
  console.log(values.json ? JSON.stringify(run, null, 2) : opsTable(run));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
