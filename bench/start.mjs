/**
 * From the start of a process to its first token behind 16 token ids, without a tokenizer: from float16 safetensors quantized on the way, and from a packed
 * int8 store used in place. Every repetition is a process of its own; the files are in the page cache. Models are generated, or your own folders.
 *
 *   node bench/start.mjs MODEL… [--reps 5] [--threads 2] [--folder DIR] [--json]
 */
import { fork } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { packStore } from 'metashard';
import { makeModel, readConfig } from './make-model.mjs';
import { MODEL_CONFIGS } from './model-configs.mjs';
import { NOISE_LIMIT, waitForQuiet } from './noise.mjs';
import { warmFiles } from './page-cache.mjs';
import { median, withRange } from './statistics.mjs';
import { markdownTable } from './table.mjs';

const ONCE = fileURLToPath(new URL('start-once.mjs', import.meta.url));
const OPTIONS = { loadIn8bit: true, llmInt8Threshold: 6, maxSeqLen: 1024 };

/** Runs one process; what it measured, the share of the machine that others used meanwhile among it. */
async function startOnce(folder, options) {
  const child = fork(ONCE, [folder, JSON.stringify(options)]);
  let measured = null;
  child.on('message', (message) => {
    measured = message;
  });
  const code = await new Promise((done) => child.on('exit', done));
  if (measured === null)
    throw new Error(`start: expected ${basename(folder)} to answer, its process ended with ${code}`);
  return measured;
}

/** Both ways of one model: { model, mode, runs, isNoisy }. */
async function startModel(nameOrFolder, { folder, reps, threads, patience, log }) {
  const generated = Object.hasOwn(MODEL_CONFIGS, nameOrFolder);
  const path = generated ? join(folder, nameOrFolder) : nameOrFolder;
  if (generated) makeModel(readConfig(nameOrFolder), path);
  const stored = { ...OPTIONS, threads, offloadFolder: join(folder, 'stores') };
  const store = await packStore(path, stored);
  const shards = readdirSync(path).filter((name) => name.endsWith('.safetensors'));
  const ways = [
    {
      mode: 'float16 safetensors',
      options: { ...OPTIONS, threads, packedStore: 'ignore' },
      files: shards.map((name) => join(path, name)),
    },
    { mode: 'packed int8 store', options: stored, files: [store] },
  ];
  const results = [];
  for (const { mode, options, files } of ways) {
    warmFiles(files);
    await startOnce(path, options);
    const [clean, noisy] = [[], []];
    const deadline = performance.now() + patience * 1e3;
    for (let tries = 0; clean.length < reps && (tries < reps || performance.now() < deadline); tries++) {
      await waitForQuiet(deadline - performance.now());
      const run = await startOnce(path, options);
      log(
        `${basename(path)}, ${mode}: ${run.firstTokenMs.toFixed(0)} ms, others used ${(100 * run.noise).toFixed(1)} %`,
      );
      (run.noise <= NOISE_LIMIT ? clean : noisy).push(run);
    }
    const isNoisy = clean.length < Math.min(reps, 3);
    const runs = isNoisy ? [...clean, ...noisy.toSorted((a, b) => a.noise - b.noise)].slice(0, reps) : clean;
    results.push({ model: basename(resolve(path)), mode, runs, isNoisy });
  }
  return results;
}

/** Results of all models. `patience`: seconds to wait for quiet repetitions of each row; 0: take them as they come. */
export async function runStart(models, { folder, reps = 5, threads = 2, patience = 0, log = () => {} }) {
  const results = [];
  for (const model of models) results.push(...(await startModel(model, { folder, reps, threads, patience, log })));
  return { threads, results };
}

/** A row a model and way. */
export function startTable({ results }) {
  const rows = results.map(({ model, mode, runs, isNoisy }) => {
    const middle = (of) => median(runs.map(of));
    return [
      `${model}, ${mode}`,
      withRange(
        runs.map(({ firstTokenMs }) => firstTokenMs),
        0,
      ) + (isNoisy ? '†' : ''),
      middle(({ importedMs }) => importedMs).toFixed(0),
      middle(({ loadedMs, importedMs }) => loadedMs - importedMs).toFixed(0),
      middle(({ firstTokenMs, loadedMs }) => firstTokenMs - loadedMs).toFixed(0),
      `${(middle(({ peakResidentBytes }) => peakResidentBytes) / 1e9).toFixed(2)} GB`,
      `${(middle(({ heldBytes }) => heldBytes) / 1e9).toFixed(2)} GB`,
    ];
  });
  return markdownTable(
    ['from', 'start to first token, ms', 'node and imports', 'load', 'first token', 'peak', 'weights and cache'],
    rows,
  );
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      reps: { type: 'string', default: '5' },
      threads: { type: 'string', default: '2' },
      patience: { type: 'string', default: '0' },
      folder: { type: 'string', default: join(tmpdir(), 'metashard-bench') },
      json: { type: 'boolean', default: false },
    },
  });
  const unknown = positionals.find((name) => !Object.hasOwn(MODEL_CONFIGS, name) && !existsSync(name));
  if (positionals.length === 0 || unknown !== undefined) {
    const names = Object.keys(MODEL_CONFIGS).join(', ');
    console.error(`start: expected models (${names}, or folders), got ${unknown ?? 'none'}`);
    process.exit(2);
  }
  const [reps, threads, patience] = ['reps', 'threads', 'patience'].map((name) => Number(values[name]));
  const log = (line) => console.error(line);
  const run = await runStart(positionals, { folder: values.folder, reps, threads, patience, log });
  console.log(values.json ? JSON.stringify(run, null, 2) : startTable(run));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
