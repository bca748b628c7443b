/**
 * Times whole models through the public API: prefill of 512 tokens, decoding of 64 tokens behind prompts of 16, alone
 * and 8 at once; in 8 bits (threshold 6, 16-bit head) and with the float16 weights; loading, start to first token, and
 * memory. Models of a built-in name are generated first (make-model.mjs).
 *
 *   node bench/end-to-end.mjs MODEL… [--reps 5] [--loads 3] [--threads 2] [--modes int8,float16] [--folder DIR]
 *                             [--patience 60] [--json]
 *
 * MODEL: a name of model-configs.mjs or a model's folder. Each model and mode is a process of its own; they take turns
 * phase by phase, and the machine's int8 peak is measured beside every prefill. --patience: seconds to wait in all, per
 * phase, for repetitions during which other processes used less than 3 % of the machine; what stays noisy is marked †.
 *
 * Decoding is held to its floor, the bytes that a step reads over the speed of a plain read, in short rounds: the speed
 * of memory moves within seconds (a virtual machine's by twice), so a floor measured once a repetition says nothing. A
 * round is a plain read of 1 GiB, a few steps of one sequence, a read, a few steps of eight, a read; steps are divided
 * by the two reads beside them, steps of eight by the steps of one beside them, and the medians over the rounds count.
 */
import { fork } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Ceilings } from './ceilings.mjs';
import { makeModel, readConfig } from './make-model.mjs';
import { MODEL_CONFIGS } from './model-configs.mjs';
import { NOISE_LIMIT, waitForQuiet } from './noise.mjs';
import { countOutlierColumns, outlierTable } from './outlier-columns.mjs';
import { warmFolder } from './page-cache.mjs';
import { median, withRange } from './statistics.mjs';
import { markdownTable } from './table.mjs';

const RUNNER = fileURLToPath(new URL('model-runner.mjs', import.meta.url));
const MODES = { int8: { loadIn8bit: true, llmInt8Threshold: 6 }, float16: { loadIn8bit: false } };
const PHASES = ['prefill512', 'decode1', 'decode8'];
/** Tokens that a phase counts. */
const TOKENS = { prefill512: 512, decode1: 64, decode8: 512 };
/** Steps between two reads of a round (model-runner.mjs), and the mean length of their contexts. */
const BURST = { steps: 4, context: 16 + 2.5 };
const ROUNDS_A_REPETITION = 5;

/** A model in one mode, alive in a process of its own. */
class Runner {
  #child;
  #waiting = null;
  #failure = null;

  constructor(folder, options) {
    this.#child = fork(RUNNER, [folder, JSON.stringify(options)]);
    this.#child.on('message', (message) => this.#settle(({ resolve }) => resolve(message)));
    this.#child.on('exit', (code) => {
      this.#failure = new Error(
        `end-to-end: expected ${basename(folder)} to answer, its process ended with code ${code}`,
      );
      this.#settle(({ reject }) => reject(this.#failure));
    });
  }

  #settle(how) {
    const waiting = this.#waiting;
    this.#waiting = null;
    if (waiting !== null) how(waiting);
  }

  /** The next message; with `phase`, asks for it first. */
  ask(phase) {
    return new Promise((resolve, reject) => {
      if (this.#failure !== null) return reject(this.#failure);
      this.#waiting = { resolve, reject };
      if (phase !== undefined) this.#child.send({ phase });
    });
  }

  kill() {
    this.#child.kill('SIGKILL');
  }
}

/** Folder and name of a model, generated if it is a built-in one. */
function prepareModel(nameOrFolder, folder) {
  if (!Object.hasOwn(MODEL_CONFIGS, nameOrFolder)) return { name: basename(resolve(nameOrFolder)), path: nameOrFolder };
  const path = join(folder, nameOrFolder);
  makeModel(readConfig(nameOrFolder), path);
  return { name: nameOrFolder, path };
}

function checkpointBytes(path) {
  const files = readdirSync(path).filter((file) => file.endsWith('.safetensors'));
  return files.reduce((sum, file) => sum + statSync(join(path, file)).size, 0);
}

/** Repetitions, those that other processes disturbed apart. */
const samples = () => ({ clean: [], noisy: [] });
const keep = ({ clean, noisy }, sample) => (sample.noise <= NOISE_LIMIT ? clean : noisy).push(sample);
const describeNoise = ({ noise }) => `others used ${(100 * noise).toFixed(1)} %`;

/** Everything about one model: a result per mode. */
async function runModel(model, { modes, reps, loads, threads, patience, ceilings, log }) {
  const options = (mode) => ({ ...MODES[mode], threads, maxSeqLen: 1024, maxBatchSize: 8 });
  const results = modes.map((mode) => ({
    model: model.name,
    mode,
    checkpointBytes: checkpointBytes(model.path),
    loads: samples(),
    phases: {},
  }));
  const runners = new Map();
  try {
    for (let load = 0; load < loads; load++) {
      for (const result of results) {
        await waitForQuiet((patience * 1e3) / 4);
        runners.get(result)?.kill();
        warmFolder(model.path, (name) => name.endsWith('.safetensors'));
        const runner = new Runner(model.path, options(result.mode));
        runners.set(result, runner);
        const { facts, isa, ...loaded } = await runner.ask();
        Object.assign(result, { facts, isa });
        keep(result.loads, loaded);
        log(`${model.name} ${result.mode}: loaded in ${loaded.loadMs.toFixed(0)} ms, ${describeNoise(loaded)}`);
      }
    }
    for (const phase of PHASES) await measurePhase(phase, results, runners, { reps, patience, ceilings, log });
    await measureRounds(results, runners, { rounds: ROUNDS_A_REPETITION * reps, patience, ceilings, log });
    for (const result of results) result.peakResidentBytes = (await runners.get(result).ask('close')).peakResidentBytes;
    const int8 = results.find(({ mode }) => mode === 'int8');
    if (int8 !== undefined) int8.outliers = await countOutlierColumns(model.path);
    return results;
  } finally {
    for (const runner of runners.values()) runner.kill();
  }
}

/** Repetitions of one phase, the modes in turn; while patience lasts, in quiet moments only, and noisy ones again. */
async function measurePhase(phase, results, runners, { reps, patience, ceilings, log }) {
  const deadline = performance.now() + patience * 1e3;
  for (const result of results) {
    await runners.get(result).ask(phase); // warms up
    result.phases[phase] = samples();
  }
  const missing = () => results.filter((result) => result.phases[phase].clean.length < reps);
  for (let round = 0; missing().length > 0 && (round < reps || performance.now() < deadline); round++) {
    for (const result of missing()) {
      await waitForQuiet(deadline - performance.now());
      const sample = await measureOnce(phase, result, runners.get(result), ceilings);
      keep(result.phases[phase], sample);
      log(`${result.model} ${result.mode} ${phase}: ${sample.rate.toFixed(1)} tokens/s, ${describeNoise(sample)}`);
    }
  }
}

/** One repetition; a prefill beside the int8 peak measured around it. */
async function measureOnce(phase, { facts, isa }, runner, ceilings) {
  const tokens = TOKENS[phase];
  const prefill = phase === 'prefill512';
  const before = prefill ? await ceilings.int8(isa) : 0;
  const { ms, noise } = await runner.ask(phase);
  const sample = { ms, noise, rate: (tokens / ms) * 1e3 };
  if (!prefill) return sample;
  const int8 = Math.max(before, await ceilings.int8(isa));
  const tera = (facts.int8OperationsPerToken * tokens) / ms / 1e9;
  return { ...sample, int8, tera, share: tera / int8 };
}

/** The modes take turns; each round in a quiet moment, while patience lasts. */
async function measureRounds(results, runners, { rounds, patience, ceilings, log }) {
  const deadline = performance.now() + patience * 1e3;
  for (const result of results) result.rounds = samples();
  for (let round = 0; round < rounds; round++) {
    for (const result of results) {
      if (round % ROUNDS_A_REPETITION === 0) await waitForQuiet(deadline - performance.now());
      keep(result.rounds, await measureRound(result.facts, runners.get(result), ceilings));
    }
  }
  for (const result of results) {
    const { samples: used } = counted(result.rounds, rounds / 2);
    const [one, eight, ratio] = ['decode1', 'decode8', 'eightToOne'].map((key) => median(used.map((it) => it[key])));
    log(
      `${result.model} ${result.mode}: decode ${one.toFixed(2)} × its floor, 8 sequences ${eight.toFixed(2)} ×; ` +
        `a step of 8 is ${ratio.toFixed(2)} of 1`,
    );
  }
}

/** Time ÷ floor of bursts of one and of eight sequences by the reads beside each, and the one burst over the other. */
async function measureRound({ streamedBytes, cacheBytesPerToken }, runner, ceilings) {
  const { steps, context } = BURST;
  const reads = [await ceilings.read()];
  const bursts = [];
  for (const phase of ['burst1', 'burst8']) {
    bursts.push(await runner.ask(phase));
    reads.push(await ceilings.read());
  }
  // Mean milliseconds of a gigabyte in the two neighbouring reads.
  const perGigabyte = (i) => (1e3 / reads[i] + 1e3 / reads[i + 1]) / 2;
  const floor = (i, sequences) =>
    (steps * (streamedBytes + sequences * context * cacheBytesPerToken) * perGigabyte(i)) / 1e9;
  return {
    noise: Math.max(...bursts.map(({ noise }) => noise)),
    reads,
    decode1: bursts[0].ms / floor(0, 1),
    decode8: bursts[1].ms / floor(1, 8),
    eightToOne: bursts[1].ms / bursts[0].ms,
  };
}

/** Results of all models, one a model and mode. `log` hears of progress. */
export async function runEndToEnd(
  models,
  { folder, threads = 2, reps = 5, loads = 3, modes = Object.keys(MODES), patience = 60, log = () => {} },
) {
  const ceilings = new Ceilings(folder, threads);
  const results = [];
  try {
    for (const nameOrFolder of models) {
      const model = prepareModel(nameOrFolder, folder);
      results.push(...(await runModel(model, { modes, reps, loads, threads, patience, ceilings, log })));
    }
    return { threads, results };
  } finally {
    ceilings.close();
  }
}

/** The samples that count: the clean ones, else the `needed` least disturbed ones, and then marked. */
function counted({ clean, noisy }, needed) {
  if (clean.length >= needed) return { samples: clean, mark: '' };
  return { samples: [...clean, ...noisy.toSorted((a, b) => a.noise - b.noise)].slice(0, needed), mark: '†' };
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;

/** Throughput, loading and outliers as three tables. `reps` and `loads`: how many clean repetitions were asked for. */
export function endToEndTables({ results }, { reps = 5, loads = 3 } = {}) {
  const throughput = results.map(({ model, mode, phases, rounds, facts, outliers }) => [
    `${model} ${mode}`,
    ...PHASES.map((phase) => throughputCell(phase, phases[phase], rounds, Math.min(reps, 3))),
    roundsCell(rounds, 'eightToOne'),
    `${facts.headDtype}, ${facts.cacheDtype}`,
    outlierCell(outliers),
  ]);
  const loading = results.map((result) => loadingRow(result, Math.min(loads, 2)));
  return {
    throughput: markdownTable(
      [
        'model',
        'prefill 512',
        'decode, 1 sequence',
        'decode, 8 sequences',
        'step of 8 ÷ of 1',
        'head, attention and cache',
        'outlier columns a linear',
      ],
      throughput,
    ),
    loading: markdownTable(
      ['model', 'load', 'GB/s', 'start to first token', 'peak then', 'peak after all', 'weights and cache'],
      loading,
    ),
    outliers: outlierTable(results.filter(({ outliers }) => outliers !== undefined)),
  };
}

/** Tokens a second with their range; a prefill's share of the int8 peak, a decode's time ÷ floor. */
function throughputCell(phase, taken, rounds, needed) {
  const { samples: used, mark } = counted(taken, needed);
  const rates = used.map(({ rate }) => rate);
  const cell = withRange(rates, phase === 'decode1' ? 1 : 0) + mark;
  if (phase !== 'prefill512') return `${cell}, ${roundsCell(rounds, phase)} floor`;
  const share = median(used.map((sample) => sample.share));
  return cell + (share > 0 ? `, ${percent(share)}` : '');
}

/** Median of a ratio over the rounds that count; half of them suffice. */
function roundsCell({ clean, noisy }, key) {
  const { samples: used, mark } = counted({ clean, noisy }, (clean.length + noisy.length) / 2);
  return `${median(used.map((round) => round[key])).toFixed(2)} ×${mark}`;
}

function loadingRow({ model, mode, loads, checkpointBytes, peakResidentBytes, facts: { planned } }, needed) {
  const { samples: used, mark } = counted(loads, needed);
  const middle = (field) => median(used.map((load) => load[field]));
  const seconds = (field) => `${(middle(field) / 1e3).toFixed(2)} s${mark}`;
  return [
    `${model} ${mode}`,
    seconds('loadMs'),
    (checkpointBytes / middle('loadMs') / 1e6).toFixed(2) + mark,
    seconds('startToFirstTokenMs'),
    gigabytes(middle('peakResidentBytes')),
    gigabytes(peakResidentBytes),
    gigabytes(planned.weightsBytes + planned.kvCacheBytes),
  ];
}

/**
 * Outlier columns that a model's 8-bit linears met, least to most; a model where one met none is no measure: invalid.
 */
function outlierCell(outliers) {
  if (outliers === undefined) return '–';
  const counts = outliers.flatMap(({ decode1, decode8, prefill512 }) => [decode1, decode8, prefill512]);
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  return least === 0 ? 'invalid: 0' : `${Number(least.toFixed(1))} to ${Number(most.toFixed(1))}`;
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      reps: { type: 'string', default: '5' },
      loads: { type: 'string', default: '3' },
      threads: { type: 'string', default: '2' },
      modes: { type: 'string', default: Object.keys(MODES).join() },
      folder: { type: 'string', default: join(tmpdir(), 'metashard-bench') },
      patience: { type: 'string', default: '60' },
      json: { type: 'boolean', default: false },
    },
  });
  const unknown = positionals.find((name) => !Object.hasOwn(MODEL_CONFIGS, name) && !existsSync(name));
  if (positionals.length === 0 || unknown !== undefined) {
    const names = Object.keys(MODEL_CONFIGS).join(', ');
    console.error(`end-to-end: expected models (${names}, or folders), got ${unknown ?? 'none'}`);
    process.exit(2);
  }
  const { folder, json, modes, ...numbers } = values;
  const [reps, loads, threads, patience] = ['reps', 'loads', 'threads', 'patience'].map((name) =>
    Number(numbers[name]),
  );
  const run = await runEndToEnd(positionals, {
    folder,
    reps,
    loads,
    threads,
    patience,
    modes: modes.split(','),
    log: (line) => console.error(line),
  });
  if (json) console.log(JSON.stringify(run, null, 2));
  else console.log(Object.values(endToEndTables(run, { reps, loads })).join('\n\n'));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
