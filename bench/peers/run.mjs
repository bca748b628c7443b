/**
 * metashard and the runtimes that a user could pick instead, on the same generated checkpoints, in turns: a round
 * runs every contestant once, each in a process of its own, with the machine's read speed and int8 peak measured
 * before and after it. Prints the tables and writes them between the markers of docs/benchmarks.md. README.md says
 * what has to be installed; what is not is a row of its own.
 *
 *   node bench/peers/run.mjs [--python PATH] [--models bloom-560m,llama-1b1] [--only models|linear|offload]
 *     [--rounds 3] [--reps 2] [--threads 2] [--folder DIR] [--contestants NAME,…] [--slice SECONDS] [--prepare]
 *     [--fresh] [--no-write]
 *
 * Every finished process is kept in DIR/peers/results.json: the same command goes on where it was stopped, more
 * --rounds add to it; --fresh, or another commit, starts anew. --slice: stop after so many seconds, exit code 75
 * while something is left. --prepare: generate and convert only. --contestants: only those whose name contains one of
 * these. Offloading is measured when asked for, the rest by default.
 */
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, release, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ensureBackend, native } from 'metashard';
import { Ceilings } from '../ceilings.mjs';
import { makeModel, readConfig } from '../make-model.mjs';
import { waitForQuiet } from '../noise.mjs';
import { warmFolder } from '../page-cache.mjs';
import { CONTESTANTS, command, convert, modelShape, STARTERS } from './contestants.mjs';
import { LINEARS, linearCommand } from './linears.mjs';
import { offloadRuns, prepareOffload } from './offload.mjs';
import { report, writeDocument } from './report.mjs';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
/** Longest a process may take; torch's int8 quantization of the largest model is the slowest part. */
const RUN_MS = 240e3;
const QUIET_MS = 10e3;
/** "Temporary failure": something is left to be measured. */
const EXIT_LEFT = 75;

function parseOptions() {
  const { values } = parseArgs({
    options: {
      python: { type: 'string' },
      models: { type: 'string', default: 'bloom-560m,llama-1b1' },
      only: { type: 'string' },
      rounds: { type: 'string', default: '3' },
      reps: { type: 'string', default: '2' },
      threads: { type: 'string', default: '2' },
      folder: { type: 'string', default: join(tmpdir(), 'metashard-bench') },
      contestants: { type: 'string' },
      slice: { type: 'string' },
      prepare: { type: 'boolean', default: false },
      fresh: { type: 'boolean', default: false },
      'no-write': { type: 'boolean', default: false },
    },
  });
  const { python, only, folder, contestants } = values;
  const parts = only === undefined ? ['models', 'linear'] : only.split(',');
  const unknown = parts.find((part) => !['models', 'linear', 'offload'].includes(part));
  if (unknown !== undefined) throw new Error(`run: expected --only models, linear or offload, got ${unknown}`);
  const [rounds, reps, threads] = [values.rounds, values.reps, values.threads].map(Number);
  return {
    ...{ python, parts, folder, rounds, reps, threads },
    models: values.models.split(','),
    wanted: (name) => contestants === undefined || contestants.split(',').some((part) => name.includes(part)),
    deadline: values.slice === undefined ? Infinity : performance.now() + Number(values.slice) * 1e3,
    prepare: values.prepare,
    fresh: values.fresh,
    write: !values['no-write'],
    log: (line) => console.error(line),
  };
}

function git(...args) {
  try {
    return execFileSync('git', args, { cwd: ROOT, encoding: 'utf8', stdio: 'pipe' }).trim();
  } catch {
    return 'unknown';
  }
}

/** What the results are of, the commit being the last one that touched packages; other circumstances make them void. */
function circumstances({ threads, isa }) {
  const changed = git('status', '--porcelain', '--untracked-files=no', 'packages') === '' ? '' : ' with changes';
  const memory = `${(totalmem() / 2 ** 30).toFixed(0)} GiB`;
  return {
    commit: git('log', '-1', '--format=%h', '--', 'packages') + changed,
    machine: `${cpus()[0].model}, ${cpus().length} cores, ${memory}, Linux ${release()}, Node ${process.versions.node}`,
    isa,
    threads,
  };
}

/** The results so far, kept on disk after every process. */
class Results {
  #file;

  constructor(folder, about, fresh) {
    mkdirSync(join(folder, 'peers'), { recursive: true });
    this.#file = join(folder, 'peers', 'results.json');
    const old = !fresh && existsSync(this.#file) ? JSON.parse(readFileSync(this.#file, 'utf8')) : null;
    const same = old !== null && Object.keys(about).every((key) => old.about[key] === about[key]);
    this.about = same ? old.about : { ...about, date: new Date().toISOString().slice(0, 10) };
    this.runs = same ? old.runs : {};
  }

  set(key, record) {
    this.runs[key] = record;
    writeFileSync(this.#file, JSON.stringify({ about: this.about, runs: this.runs }));
  }
}

/** Why a process failed, on one short line. */
function whyFailed({ killed, signal }, stderr) {
  if (killed) return `ended after ${RUN_MS / 1e3} s`;
  if (signal !== null) return `ended by ${signal}`;
  const lines = stderr.split(/[\r\n]+/).filter((line) => line.trim() !== '');
  return (lines.findLast((line) => /error/i.test(line)) ?? lines.at(-1) ?? 'failed').trim().slice(0, 160);
}

/** The last line that a process prints, as JSON (or all of it, as { text }); why there is none, as { failed }. */
function runOnce({ program, args, asText = false }) {
  return new Promise((resolve) => {
    const options = { timeout: RUN_MS, killSignal: 'SIGKILL', maxBuffer: 1 << 26 };
    execFile(program, args, options, (error, stdout, stderr) => {
      if (error === null && asText) return resolve({ text: stdout.trim() });
      const last = stdout.trim().split('\n').at(-1);
      if (error === null && last.startsWith('{')) return resolve(JSON.parse(last));
      resolve({ failed: error === null ? 'printed no result' : whyFailed(error, stderr) });
    });
  });
}

/** Everything to be run, in order: { key, skip?, before?, program, args }. */
function listRuns(options, models) {
  const { parts, rounds, reps, wanted, folder } = options;
  const runs = [];
  for (let round = 0; round < rounds; round++) {
    for (const model of parts.includes('models') ? models : []) {
      const turn = ({ name, slow }) => wanted(name) && !(slow && round > 0 && round === rounds - 1);
      for (const contestant of CONTESTANTS.filter(turn)) {
        const phases = ['prefill512', 'decode1', 'decode8', ...(contestant.ours ? ['decode8after512'] : [])];
        const key = `speed/${model.name}/${contestant.name}`;
        runs.push({ key, round, ...commandOf(contestant, model, options, { phases, reps, sequences: 8 }) });
      }
      for (const contestant of STARTERS.filter(({ name }) => wanted(name))) {
        const key = `start/${model.name}/${contestant.name}/${contestant.from}`;
        const files = contestant.file?.(model.name).replace(/\.xml$/, '.bin');
        const before = () => {
          if (files !== undefined) warmFolder(join(folder, 'peers'), (name) => name.startsWith(files));
          else if (contestant.packedStore === 'use') warmFolder(join(folder, 'peers', 'stores'));
          else warmFolder(join(folder, model.name));
        };
        runs.push({
          key,
          round,
          before,
          ...commandOf(contestant, model, options, { phases: [], reps: 0, sequences: 1 }),
        });
      }
    }
    for (const linear of parts.includes('linear') ? LINEARS.filter(({ name }) => wanted(name)) : []) {
      runs.push({ key: `linear/${linear.name}`, round, ...linearCommand(linear, options) });
    }
  }
  for (const model of parts.includes('models') ? models : []) {
    const args = [join(ROOT, 'bench/outlier-columns.mjs'), join(folder, model.name)];
    runs.push({ key: `outliers/${model.name}`, asText: true, program: process.execPath, args });
  }
  if (parts.includes('offload')) for (const model of models) runs.push(...offloadRuns(model, options));
  return runs;
}

/** The command, or why there is none. */
function commandOf(contestant, model, options, what) {
  const obstacle = model.obstacles.get(contestant.name);
  if (obstacle != null) return { skip: obstacle };
  if (contestant.program.endsWith('.py') && options.python === undefined) return { skip: 'not installed: no --python' };
  return command(contestant, model, options, what);
}

/** Generates and converts the models. */
async function prepareModels(options) {
  const models = [];
  for (const name of options.models) {
    const config = readConfig(name);
    const { bytes } = makeModel(config, join(options.folder, name));
    const model = { name, bytes, shape: modelShape(config), obstacles: new Map() };
    models.push(model);
    if (options.parts.includes('models')) {
      for (const contestant of CONTESTANTS.filter((one) => options.wanted(one.name))) {
        model.obstacles.set(contestant.name, convert(contestant, model, options));
      }
      await writeStores(model, options);
    }
    if (options.parts.includes('offload')) prepareOffload(model, options);
  }
  return models;
}

/** The packed stores that starts read: written by a load, used where they are there already. */
async function writeStores(model, options) {
  const users = STARTERS.filter(({ name, packedStore }) => packedStore === 'use' && options.wanted(name));
  for (const contestant of users) {
    const written = { ...contestant, packedStore: 'write' };
    const { failed } = await runOnce(command(written, model, options, { phases: [], reps: 0, sequences: 1 }));
    if (failed !== undefined) throw new Error(`run: expected a packed store of ${model.name}, got ${failed}`);
  }
}

/** Runs what has no result yet, and what failed without being allowed to. Returns whether all is done. */
async function measure(runs, results, ceilings, { deadline, log }) {
  for (const { key, round, skip, before, after, mayFail, inputBytes, ...run } of runs) {
    const place = `${key}/${round ?? 0}`;
    const known = results.runs[place];
    if (known !== undefined && (known.failed === undefined || mayFail)) continue;
    if (skip !== undefined || results.runs[`${key}/0`]?.missing !== undefined) {
      results.set(place, { missing: skip ?? results.runs[`${key}/0`].missing });
      continue;
    }
    if (performance.now() > deadline) return false;
    await waitForQuiet(QUIET_MS);
    before?.();
    const around = async () => ({ read: await ceilings.read(), int8: await ceilings.int8(results.about.isa) });
    const first = await around();
    const started = performance.now();
    const record = { ...(await runOnce(run)), inputBytes };
    after?.();
    const last = await around();
    const [read, int8] = ['read', 'int8'].map((what) => Math.max(first[what], last[what]));
    results.set(place, { ...record, read, int8 });
    log(`${place}: ${((performance.now() - started) / 1e3).toFixed(1)} s ${record.failed ?? record.missing ?? ''}`);
  }
  return true;
}

async function main() {
  const options = parseOptions();
  ensureBackend('cpu');
  const { isa } = JSON.parse(native().describeBackend('cpu'));
  const models = await prepareModels(options);
  if (options.prepare) return;
  const results = new Results(options.folder, circumstances({ ...options, isa }), options.fresh);
  const ceilings = new Ceilings(options.folder, options.threads);
  let done = false;
  try {
    done = await measure(listRuns(options, models), results, ceilings, options);
  } finally {
    ceilings.close();
  }
  if (!done) {
    process.exitCode = EXIT_LEFT;
    return;
  }
  const text = report(results);
  console.log(text);
  if (options.write) writeDocument(text);
}

await main();
