/**
 * All benchmarks, one after another: every op, then whole models. Prints the tables and writes them with the hardware, the date and the command between the
 * markers of docs/benchmarks.md.
 *
 *   npm run bench -- [--quick] [--models bloom-560m,llama-1b1,bloom-1b7] [--threads 2] [--folder DIR] [--patience 60] [--no-write]
 *
 * --quick: short runs of the two smaller models, printed only. --folder (default: metashard-bench in the temporary folder) takes the generated models, about
 * 7 GB, and the compiled probe. --patience: see end-to-end.mjs.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus, release, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { endToEndTables, runEndToEnd } from './end-to-end.mjs';
import { opsTable, rowLine, runOps } from './ops.mjs';

const DOCUMENT = fileURLToPath(new URL('../docs/benchmarks.md', import.meta.url));
const BEGIN = '<!-- measured: written by bench/run.mjs -->';
const END = '<!-- end of measured -->';

function parseOptions() {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      models: { type: 'string' },
      threads: { type: 'string', default: '2' },
      folder: { type: 'string', default: join(tmpdir(), 'metashard-bench') },
      patience: { type: 'string' },
      'no-write': { type: 'boolean', default: false },
    },
  });
  const { quick } = values;
  return {
    quick,
    models: (values.models ?? (quick ? 'bloom-560m,llama-1b1' : 'bloom-560m,llama-1b1,bloom-1b7')).split(','),
    threads: Number(values.threads),
    folder: values.folder,
    patience: Number(values.patience ?? (quick ? 0 : 60)),
    reps: quick ? 3 : 5,
    loads: quick ? 1 : 3,
    time: quick ? 30 : 500,
    tries: quick ? 1 : 3,
    write: !quick && !values['no-write'],
  };
}

/** The commit that was measured, marked where the working tree differs. */
function commit() {
  const git = (...args) =>
    execFileSync('git', args, { cwd: fileURLToPath(new URL('..', import.meta.url)), encoding: 'utf8' }).trim();
  try {
    return (
      git('rev-parse', '--short', 'HEAD') +
      (git('status', '--porcelain', '--untracked-files=no') === '' ? '' : ' with changes')
    );
  } catch {
    return 'unknown';
  }
}

function describeMachine({ isa, threads, ceilings }) {
  const [{ model }] = cpus();
  const { read, int8, float } = ceilings;
  return [
    `- Processor: ${model}, ${cpus().length} cores, ${(totalmem() / 2 ** 30).toFixed(0)} GiB; kernels: ${isa}; ${threads} threads`,
    `- Node ${process.versions.node}, Linux ${release()}, commit ${commit()}, ${new Date().toISOString().slice(0, 10)}`,
    `- Ceilings beside the rows, medians: ${read.toFixed(1)} GB/s plain read, ${int8.toFixed(2)} TOPS in int8, ${float.toFixed(2)} TFLOPS in float32`,
    `- Command: \`npm run bench${process.argv.length > 2 ? ` -- ${process.argv.slice(2).join(' ')}` : ''}\``,
  ].join('\n');
}

function section(ops, models, options) {
  const { throughput, loading, outliers } = endToEndTables(models, options);
  return [
    describeMachine(ops),
    '### Whole models',
    throughput,
    '### Loading and memory',
    loading,
    '### Outlier columns met per linear',
    outliers,
    '### Ops',
    opsTable(ops),
  ].join('\n\n');
}

function writeDocument(text) {
  const page = readFileSync(DOCUMENT, 'utf8');
  const [start, end] = [page.indexOf(BEGIN), page.indexOf(END)];
  if (start < 0 || end < start) throw new Error(`run: expected the markers ${BEGIN} and ${END} in ${DOCUMENT}`);
  writeFileSync(DOCUMENT, `${page.slice(0, start + BEGIN.length)}\n\n${text}\n\n${page.slice(end)}`);
}

const options = parseOptions();
const log = (line) => console.error(line);
const models = await runEndToEnd(options.models, { ...options, log });
const ops = await runOps({ ...options, onRow: (row) => log(rowLine(row)) });
const text = section(ops, models, options);
console.log(text);
if (options.write) writeDocument(text);
