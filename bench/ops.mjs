/**
 * Times every op of the CPU backend alone, through the addon, and holds each to its floor: the bytes it must read over
 * the machine's plain read speed, or its operations over the registers' peak, whichever takes longer, both measured
 * beside it in the same run. Weights rotate through more than 512 MB.
 *
 *   node bench/ops.mjs [FILTER] [--threads 2] [--time 400] [--tries 3] [--folder DIR] [--json]
 *
 * FILTER: only rows whose name contains it. --time: milliseconds a row. --tries: how often a row is taken that other
 * processes disturb; one that stays disturbed is marked †. --folder keeps the compiled probe.
 */
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ensureBackend, native, OP_NAMES } from 'metashard';
import { Bench } from 'tinybench';
import { Ceilings } from './ceilings.mjs';
import { NOISE_LIMIT, waitForQuiet, watchNoise } from './noise.mjs';
import { OP_ROWS } from './op-rows.mjs';
import { Stage } from './stage.mjs';
import { median } from './statistics.mjs';
import { markdownTable } from './table.mjs';

/** Longest wait for other processes before each try. */
const QUIET_MS = 5000;

/** tinybench's median milliseconds over runs that take turns with the alternatives, beside the ceilings around them. */
async function timeOnce(name, alternatives, { time, ceilings, isa }) {
  const bench = new Bench({
    time,
    iterations: Math.max(3, Math.min(10, time / 10)),
    warmupTime: time / 8,
    warmupIterations: 1,
    throws: true,
  });
  let turn = 0;
  bench.add(name, () => {
    const calls = alternatives[turn++ % alternatives.length];
    for (const call of calls) call();
  });
  const before = await measureCeilings(ceilings, isa);
  const noise = watchNoise();
  const [task] = await bench.run();
  const disturbed = noise();
  const after = await measureCeilings(ceilings, isa);
  return { ms: task.result.latency.p50, noise: disturbed, measured: [before, after] };
}

/** A row's least disturbed try. */
async function timeRow({ name, build }, tries, settings) {
  const stage = new Stage();
  try {
    const alternatives = build(stage);
    let best = null;
    for (let i = 0; i < tries && (best === null || best.noise > NOISE_LIMIT); i++) {
      if (tries > 1) await waitForQuiet(QUIET_MS);
      const timed = await timeOnce(name, alternatives, settings);
      if (best === null || timed.noise < best.noise) best = timed;
    }
    return best;
  } finally {
    stage.close();
  }
}

/**
 * Results of all rows: { name, op, ms, noisy, gigabytes, tera, floorMs, outliers } (GB/s, 10¹² operations a second;
 * floorMs null where there is none). `onRow` hears of each as it comes.
 */
export async function runOps({ threads, time, folder, tries = 1, filter = '', onRow = () => {} }) {
  ensureBackend('cpu');
  native().configureBackend('cpu', 'threads', String(threads));
  const { isa } = JSON.parse(native().describeBackend('cpu'));
  const ceilings = new Ceilings(folder, threads);
  const results = [];
  try {
    for (const row of supportedRows().filter(({ name }) => name.includes(filter))) {
      const result = judge(row, await timeRow(row, tries, { time, ceilings, isa }));
      results.push(result);
      onRow(result);
    }
    return { isa, threads, results, ceilings: summarize(results) };
  } finally {
    ceilings.close();
  }
}

function supportedRows() {
  const stage = new Stage();
  try {
    return OP_ROWS.filter(({ op }) => stage.supports(op));
  } finally {
    stage.close();
  }
}

async function measureCeilings(ceilings, isa) {
  return { read: await ceilings.read(), int8: await ceilings.int8(isa), float: await ceilings.float() };
}

/**
 * The row beside its floor; the better of the two measurements around it counts, so that a disturbed one flatters
 * nothing.
 */
function judge({ name, op, operations = 0, unit, bytes, floor = true, outliers }, { ms, noise, measured }) {
  const best = (what) => Math.max(...measured.map((one) => one[what]));
  const readMs = bytes / best('read') / 1e6;
  const computeMs = unit === undefined ? 0 : operations / best(unit) / 1e9;
  return {
    name,
    op,
    ms,
    noisy: noise > NOISE_LIMIT,
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
  const rows = results.map(({ name, ms, noisy, gigabytes, tera, floorMs, bound, outliers }) => [
    outliers === undefined ? name : `${name} (${outliers} outlier columns)`,
    formatMicroseconds(ms) + (noisy ? '†' : ''),
    gigabytes.toFixed(1),
    tera === 0 ? '–' : (tera * 1e3).toFixed(0),
    floorMs === null ? '–' : `${(ms / floorMs).toFixed(2)} × ${bound}`,
  ]);
  return markdownTable(['op', 'median µs', 'GB/s', 'GOPS', 'time ÷ floor'], rows);
}

/** A row as progress is told. */
export function rowLine({ name, ms, noisy, floorMs }) {
  return `${name}: ${formatMicroseconds(ms)} µs${noisy ? '†' : ''}${floorMs === null ? '' : `, ${(ms / floorMs).toFixed(2)} × its floor`}`;
}

const formatMicroseconds = (ms) => (ms * 1e3).toFixed(ms < 0.1 ? 2 : 0);

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      threads: { type: 'string', default: '2' },
      time: { type: 'string', default: '400' },
      tries: { type: 'string', default: '3' },
      folder: { type: 'string', default: join(tmpdir(), 'metashard-bench') },
      json: { type: 'boolean', default: false },
    },
  });
  const unmeasured = OP_NAMES.filter((op) => !OP_ROWS.some((row) => row.op === op));
  if (unmeasured.length > 0) console.error(`no row yet for ${unmeasured.join(', ')}`);
  const [threads, time, tries] = [values.threads, values.time, values.tries].map(Number);
  const onRow = (row) => console.error(rowLine(row));
  const run = await runOps({ threads, time, tries, folder: values.folder, filter: positionals[0], onRow });
  console.log(values.json ? JSON.stringify(run, null, 2) : opsTable(run));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
