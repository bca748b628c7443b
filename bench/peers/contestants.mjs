/**
 * Who is measured, on what file, and what a step of each must read. `block`, `head` and `cache` are bytes an element:
 * of the blocks' matrices, of the output head, of keys and values. `program` gets one argument, the job as JSON;
 * `start`: also measured from the start of a process to the first token, in a process of its own with one sequence
 * (all others: as part of the throughput run). `slow`: a round less, because it loads for long and is far from the best.
 * `takes`: only where this checkout's configuration takes that option with that value.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = (name) => fileURLToPath(new URL(name, import.meta.url));

const INT8 = { loadIn8bit: true, llmInt8Threshold: 6 };
const Q8_0 = 34 / 32;
const metashard = (options) => ({ ours: true, program: 'run-metashard.mjs', options: { ...INT8, ...options } });

const SCHEMA = new URL('../../packages/metashard/schema/metashard.schema.json', import.meta.url);
/** Whether this checkout's configuration takes this value. */
function takes(option, value) {
  const { enum: values = [], const: only } = JSON.parse(readFileSync(SCHEMA, 'utf8')).properties[option] ?? {};
  return [...values, only].includes(value);
}

const ALL = [
  {
    name: 'metashard, 16-bit head (as published)',
    ...metashard({}),
    bytes: { block: 1, head: 2, cache: 4 },
  },
  {
    name: 'metashard',
    ...metashard({ llmInt8Head: true }),
    bytes: { block: 1, head: 1, cache: 4 },
  },
  {
    name: 'metashard, bfloat16 attention',
    ...metashard({ llmInt8Head: true, attention: 'bfloat16', kvCacheDtype: 'bfloat16' }),
    takes: ['attention', 'bfloat16'],
    bytes: { block: 1, head: 1, cache: 2 },
  },
  {
    name: 'OpenVINO',
    program: 'run_openvino.py',
    converter: 'convert_openvino.py',
    file: (model) => `${model}.openvino.xml`,
    bytes: { block: 1, head: 1, cache: 1 },
    start: true,
  },
  {
    name: 'onnxruntime-node int8',
    program: 'run-onnxruntime.mjs',
    converter: 'convert_onnx.py',
    file: (model) => `${model}.int8.onnx`,
    bytes: { block: 1, head: 1, cache: 4 },
    start: true,
  },
  {
    name: 'node-llama-cpp Q8_0',
    program: 'run-llama-cpp.mjs',
    converter: 'convert_gguf.py',
    file: (model) => `${model}.q8_0.gguf`,
    bytes: { block: Q8_0, head: Q8_0, cache: 2 },
    start: true,
  },
  {
    name: 'PyTorch int8 dynamic',
    program: 'run_torch.py',
    mode: 'int8',
    slow: true,
    bytes: { block: 1, head: 1, cache: 4 },
  },
  {
    name: 'PyTorch bfloat16',
    program: 'run_torch.py',
    mode: 'bfloat16',
    slow: true,
    bytes: { block: 2, head: 2, cache: 2 },
  },
  {
    name: 'transformers + bitsandbytes',
    program: 'run_torch.py',
    mode: 'bitsandbytes',
    slow: true,
    bytes: { block: 1, head: 2, cache: 2 },
  },
  {
    name: 'CTranslate2 int8',
    program: 'run_ctranslate2.py',
    converter: 'convert_ctranslate2.py',
    file: (model) => `${model}.ctranslate2`,
    bytes: { block: 1, head: 1, cache: 4 },
  },
];

export const CONTESTANTS = ALL.filter((one) => one.takes === undefined || takes(...one.takes));

/** metashard from its start: from float16 safetensors, and from the packed store used in place. */
const STARTS = ALL.slice(0, 2).flatMap((contestant) =>
  [
    ['float16 safetensors', 'ignore'],
    ['packed store', 'use'],
  ].map(([from, packedStore]) => ({ ...contestant, from, packedStore })),
);

/** Contestants as the processes that are measured from their start. `from`: what they load. */
export const STARTERS = [
  ...STARTS,
  ...CONTESTANTS.filter(({ start }) => start).map((contestant) => ({ ...contestant, from: 'its ready file' })),
];

/** The shape of a model, counted in elements. */
export function modelShape(config) {
  const bloom = config.model_type === 'bloom';
  const hidden = config.hidden_size;
  const layers = bloom ? config.n_layer : config.num_hidden_layers;
  const heads = bloom ? config.n_head : config.num_attention_heads;
  const kvHeads = bloom ? heads : config.num_key_value_heads;
  const headSize = hidden / heads;
  const attention = 2 * hidden * hidden + 2 * hidden * kvHeads * headSize;
  const mlp = bloom ? 8 * hidden * hidden : 3 * hidden * config.intermediate_size;
  return {
    layers,
    kvHeads,
    headSize,
    block: layers * (attention + mlp),
    head: config.vocab_size * hidden,
    cachePerToken: 2 * layers * kvHeads * headSize,
  };
}

/** Program and argument of a run of one contestant. `what`: { phases, reps, sequences }. */
export function command(contestant, model, { python, threads, folder }, what) {
  const path = join(folder, model.name);
  const converted = contestant.file && join(folder, 'peers', contestant.file(model.name));
  const { layers, kvHeads, headSize } = model.shape;
  const job = {
    file: converted ?? path,
    threads,
    mode: contestant.mode,
    shape: { layers, kvHeads, headSize },
    probe: { folder, threads },
    ...what,
  };
  if (contestant.ours) {
    const packedStore = contestant.packedStore ?? 'ignore';
    job.options = { ...contestant.options, packedStore, offloadFolder: join(folder, 'peers', 'stores') };
  }
  const program = contestant.program.endsWith('.py') ? python : process.execPath;
  return { program, args: [here(contestant.program), JSON.stringify(job)] };
}

const hash = (...texts) =>
  texts
    .reduce((sum, text) => sum.update(text), createHash('sha256'))
    .digest('hex')
    .slice(0, 16);

/**
 * Converts a model for a contestant unless that was done by the same converter from the same recipe. Returns why it
 * cannot be, else null.
 */
export function convert({ converter, file }, model, { python, folder, log }) {
  if (converter === undefined) return null;
  if (!existsSync(here(converter))) return 'not installed';
  const out = join(folder, 'peers', file(model.name));
  const recipe = readFileSync(join(folder, model.name, 'recipe.json'), 'utf8');
  const stamp = hash(recipe, readFileSync(here(converter)), readFileSync(here('checkpoint.py')));
  if (existsSync(`${out}.stamp`) && readFileSync(`${out}.stamp`, 'utf8') === stamp) return null;
  if (python === undefined) return 'not converted: no --python';
  log(`converting ${model.name} for ${basename(out)}`);
  mkdirSync(dirname(out), { recursive: true });
  rmSync(`${out}.stamp`, { force: true });
  try {
    execFileSync(python, [here(converter), join(folder, model.name), out], { stdio: ['ignore', 'ignore', 'pipe'] });
  } catch (error) {
    const last = String(error.stderr ?? error.message)
      .trim()
      .split('\n')
      .at(-1);
    return /No module named/.test(last) ? `not installed: ${last.split("'")[1]}` : `not converted: ${last}`;
  }
  writeFileSync(`${out}.tmp`, stamp);
  renameSync(`${out}.tmp`, `${out}.stamp`);
  return null;
}
