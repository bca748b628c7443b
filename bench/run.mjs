/**
 * All benchmarks, one after another: whole models, starts of processes, the case table, then every op at real sizes.
 * Prints the tables and writes them with the hardware, the date and the command between the markers of
 * docs/benchmarks.md.
 *
 *   npm run bench -- [--quick] [--only models|start|cases|ops] [--models bloom-560m,llama-1b1,bloom-1b7] [--threads 2]
 *                    [--folder DIR] [--patience 60] [--no-write]
 *
 * --quick: short runs of the two smaller models, printed only. --only: measures one part again and keeps the others
 * from the last run. --folder (default: metashard-bench in the temporary folder) takes the generated models, about
 * 7 GB, the compiled probe and the results. --patience: see end-to-end.mjs.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, release, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { casesTable, runCases } from './cases.mjs';
import { endToEndTables, runEndToEnd } from './end-to-end.mjs';
import { measureModuleOverhead, moduleOverheadLine } from './module-overhead.mjs';
import { opsTable, rowLine, runOps } from './ops.mjs';
import { runStart, startTable } from './start.mjs';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const DOCUMENT = join(ROOT, 'docs/benchmarks.md');
const BEGIN = '<!-- measured: written by bench/run.mjs -->';
const END = '<!-- end of measured -->';
const PARTS = ['models', 'start', 'cases', 'ops'];

function parseOptions() {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      only: { type: 'string' },
      models: { type: 'string' },
      threads: { type: 'string', default: '2' },
      folder: { type: 'string', default: join(tmpdir(), 'metashard-bench') },
      patience: { type: 'string' },
      'no-write': { type: 'boolean', default: false },
    },
  });
  const { quick, only, folder } = values;
  const patience = Number(values.patience ?? (quick ? 0 : 60));
  return {
    folder,
    parts: only === undefined ? PARTS : [only],
    models: (values.models ?? (quick ? 'bloom-560m,llama-1b1' : 'bloom-560m,llama-1b1,bloom-1b7')).split(','),
    threads: Number(values.threads),
    patience,
    reps: quick ? 3 : 5,
    loads: quick ? 1 : 3,
    time: quick ? 30 : 500,
    tries: patience > 0 ? 3 : 1,
    write: !quick && !values['no-write'],
  };
}

/** The commit that was measured, marked where the working tree differs. */
function commit() {
  const git = (...args) => execFileSync('git', args, { cwd: ROOT, encoding: 'utf8', stdio: 'pipe' }).trim();
  try {
    const changed = git('status', '--porcelain', '--untracked-files=no', 'packages', 'bench') !== '';
    return git('rev-parse', '--short', 'HEAD') + (changed ? ' with changes' : '');
  } catch {
    return 'unknown';
  }
}

/** When, what and how; each part carries its own, because they may be measured at different times. */
function circumstances() {
  const flags = process.argv.slice(2);
  return {
    date: new Date().toISOString().slice(0, 10),
    commit: commit(),
    command: ['npm run bench', ...(flags.length > 0 ? ['--', ...flags] : [])].join(' '),
    machine: `${cpus()[0].model}, ${cpus().length} cores, ${(totalmem() / 2 ** 30).toFixed(0)} GiB, Linux ${release()}, Node ${process.versions.node}`,
  };
}

const describe = ({ date, commit, command, machine }, { isa, threads }) =>
  `${machine}; kernels ${isa}, ${threads} threads; commit ${commit}, ${date}, \`${command}\`.`;

function modelsSection({ about, run, options }) {
  const { throughput, loading, outliers } = endToEndTables(run, options);
  return [
    '### Whole models',
    describe(about, { isa: run.results[0].isa, threads: run.threads }),
    'Tokens a second; beside them the share of the int8 peak (prefill) and time ÷ floor (decode).',
    throughput,
    '### Loading and memory',
    loading,
    '### Outlier columns met per linear',
    outliers,
  ].join('\n\n');
}

function startSection({ about, run }) {
  const { isa } = run.results[0].runs[0];
  return ['### Start', describe(about, { isa, threads: run.threads }), startTable(run)].join('\n\n');
}

function casesSection({ about, run }) {
  return ['### The case table', describe(about, run), casesTable(run)].join('\n\n');
}

function opsSection({ about, run }) {
  const { read, int8, float } = run.ceilings;
  const ceilings = `${read.toFixed(1)} GB/s plain read, ${int8.toFixed(2)} TOPS in int8, ${float.toFixed(2)} TFLOPS in float32`;
  return [
    '### Ops',
    describe(about, run),
    `Ceilings beside the rows, medians: ${ceilings}. ${moduleOverheadLine(run.module)}`,
    opsTable(run),
  ].join('\n\n');
}

function writeDocument(text) {
  const page = readFileSync(DOCUMENT, 'utf8');
  const [start, end] = [page.indexOf(BEGIN), page.indexOf(END)];
  if (start < 0 || end < start) throw new Error(`run: expected the markers ${BEGIN} and ${END} in ${DOCUMENT}`);
  writeFileSync(DOCUMENT, `${page.slice(0, start + BEGIN.length)}\n\n${text}\n\n${page.slice(end)}`);
}

async function main() {
  const options = parseOptions();
  const log = (line) => console.error(line);
  const file = join(options.folder, 'results.json');
  const results = options.write && existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {};
  const measure = {
    models: () => runEndToEnd(options.models, { ...options, log }),
    start: () => runStart(options.models, { ...options, log }),
    cases: () => runCases({ threads: options.threads }),
    ops: async () => ({
      ...(await runOps({ ...options, onRow: (row) => log(rowLine(row)) })),
      module: await measureModuleOverhead(),
    }),
  };
  for (const part of options.parts) {
    if (!PARTS.includes(part)) throw new Error(`run: expected --only ${PARTS.join(', ')}, got ${part}`);
    results[part] = { about: circumstances(), run: await measure[part](), options };
    mkdirSync(options.folder, { recursive: true });
    if (options.write) writeFileSync(file, JSON.stringify(results));
  }
  const section = { models: modelsSection, start: startSection, cases: casesSection, ops: opsSection };
  const measured = PARTS.filter((part) => results[part] !== undefined);
  const text = measured.map((part) => section[part](results[part])).join('\n\n');
  console.log(text);
  if (options.write) writeDocument(text);
}

await main();
