/**
 * Where the time of a step goes: runs the program that a model is loaded as, op by op, on the CPU with the model's
 * weights, and prints the ops by cost. For those who tune kernels. Nothing but ops is timed; what the executors add
 * shows in bench/end-to-end.mjs.
 *
 *   node bench/profile.mjs MODEL [--phase prefill,decode,decode8] [--float] [--context 48] [--threads 2] [--reps 10]
 */
import { parseArgs } from 'node:util';
import {
  KV_BLOCK_SIZE,
  liveRanges,
  loadModel,
  native,
  openCheckpoint,
  readTensor,
  resolveDims,
  specBytes,
} from 'metashard';
import { waitForQuiet, watchNoise } from './noise.mjs';
import { Stage } from './stage.mjs';
import { median } from './statistics.mjs';
import { markdownTable } from './table.mjs';

const LONGEST_WAIT_MS = 20_000;
const MAX_SEQ_LEN = 1024;
const MAX_BATCH_SIZE = 8;

const PHASES = {
  prefill: { sequences: 1, length: 512 },
  decode: { sequences: 1, length: 1 },
  decode8: { sequences: 8, length: 1 },
};

/** The program as `loadModel` makes it, with every pass it runs. */
async function programOf(folder, float, threads) {
  const options = { devices: ['cpu'], loadIn8bit: !float, maxSeqLen: MAX_SEQ_LEN, maxBatchSize: MAX_BATCH_SIZE };
  const model = await loadModel(folder, { ...options, ...(threads === undefined ? {} : { threads }) });
  const { program } = model.recorded;
  await model.dispose();
  return program;
}

/**
 * Weights in place by tensor id: as they are, or quantized where the program wants int8. Names are the checkpoint's.
 */
async function placeWeights(stage, program, folder) {
  const index = await openCheckpoint(folder);
  const places = new Map();
  const byName = new Map(program.tensors.flatMap(({ kind, name }, id) => (kind === 'weight' ? [[name, id]] : [])));
  for (const [name, id] of byName) {
    if (places.has(id) || name.endsWith('SCB')) continue;
    const spec = program.tensors[id];
    const value = await readTensor(index, name);
    const source = stage.tensor(value.shape, value.dtype);
    native().copy(source.buffer, 0, value.storage.buffer, 0, value.nbytes);
    if (spec.dtype !== 'int8') {
      places.set(id, source);
      continue;
    }
    const scales = stage.tensor([spec.dims[0]]);
    places.set(id, stage.tensor(spec.dims, 'int8', spec.layout));
    places.set(byName.get(name.replace(/weight$/, 'SCB')), scales);
    stage.call('quantize_weight', [source], [places.get(id), scales], [0])();
  }
  return places;
}

/** Values of the step's inputs: `sequences` rows of `length` new tokens behind `cached` ones. */
function stepInputs({ sequences, length }, cached) {
  const blocks = MAX_SEQ_LEN / KV_BLOCK_SIZE;
  const each = (value) => Array.from({ length: sequences }, (_, s) => value(s));
  const tokens = (value) => Array.from({ length: sequences * length }, (_, i) => value(i % length, i));
  return {
    input_ids: tokens((_, i) => (i * 7919) % 30000),
    positions: tokens((t) => cached + t),
    query_starts: each((s) => s * length),
    query_lengths: each(() => length),
    context_lengths: each(() => cached + length),
    block_tables: Array.from({ length: sequences * blocks }, (_, i) => i),
    output_rows: each((s) => (s + 1) * length - 1),
  };
}

/** Every op of the program as a call, activations in buffers that are used again once nobody needs them. */
function prepareCalls(stage, program, weights, phase, cached) {
  const { tensors, ops } = program;
  const dims = { tokens: phase.sequences * phase.length, sequences: phase.sequences, outputs: phase.sequences };
  const inputs = stepInputs(phase, cached);
  const places = new Map(weights);
  const free = new Map();
  const specOf = (id) => ({ ...tensors[id], dims: resolveDims(tensors[id].dims, dims) });
  const place = (id) => {
    const spec = specOf(id);
    if (spec.kind === 'view') return { ...place(spec.of), dims: spec.dims, offset: spec.offset, strides: spec.strides };
    if (!places.has(id)) places.set(id, make(spec));
    return places.get(id);
  };
  const make = ({ kind, name, data, dims: shape, dtype, layout }) => {
    if (kind === 'input') return stage.ints(inputs[name], shape);
    if (kind === 'constant') return dtype === 'int32' ? stage.ints(data, shape) : stage.floats(data, shape);
    if (kind === 'cache') return stage.zeros(shape, dtype);
    const kept = free.get(specBytes({ dims: shape, dtype, layout }))?.pop();
    return kept === undefined ? stage.tensor(shape, dtype, layout) : { ...kept, dims: shape, dtype, layout };
  };
  const dying = ops.map(() => []);
  for (const [id, { last }] of liveRanges(program, { outputs: ['logits'] })) {
    if (tensors[id].kind === 'activation') dying[last]?.push(id);
  }
  return ops.map(({ op, inputs: ins, outputs: outs, attributes }, i) => {
    const [from, to] = [ins.map((id) => (id < 0 ? null : place(id))), outs.map(place)];
    for (const id of dying[i]) {
      const bytes = specBytes(places.get(id));
      free.set(bytes, [...(free.get(bytes) ?? []), places.get(id)]);
    }
    return stage.call(op, from, to, attributes);
  });
}

/** Milliseconds of each op and of all together, medians of `reps`. */
function timeCalls(calls, reps) {
  const times = calls.map(() => []);
  const whole = [];
  for (let rep = 0; rep <= reps; rep++) {
    const started = performance.now();
    let before = started;
    for (const [i, call] of calls.entries()) {
      call();
      const now = performance.now();
      if (rep > 0) times[i].push(now - before);
      before = now;
    }
    if (rep > 0) whole.push(before - started);
  }
  return { times: times.map(median), whole: median(whole) };
}

/** Ops of the same name and the same place in a block, summed over the blocks. */
function groupOps({ ops, tensors }, times) {
  const groups = new Map();
  for (const [i, { op, module, inputs }] of ops.entries()) {
    const weight = inputs.map((id) => tensors[id]).find((tensor) => tensor?.kind === 'weight');
    const shape = op.includes('linear') && weight !== undefined ? ` ${weight.dims.join('×')}` : '';
    const key = `${op}${shape} (${module.replace(/\.\d+(?=\.|$)/g, '.*')})`;
    const group = groups.get(key) ?? { key, calls: 0, ms: 0, bytes: 0 };
    group.calls++;
    group.ms += times[i];
    if (op !== 'embedding' && weight !== undefined) group.bytes += specBytes(weight);
    groups.set(key, group);
  }
  return [...groups.values()].sort((a, b) => b.ms - a.ms);
}

function printPhase(phase, program, { times, whole }, noise) {
  const groups = groupOps(program, times);
  const share = (ms) => `${((100 * ms) / whole).toFixed(1)} %`;
  const rows = groups.slice(0, 20).map(({ key, calls, ms, bytes }) => {
    const speed = bytes / ms / 1e6;
    return [key, calls, ms.toFixed(3), share(ms), speed < 1 ? '–' : speed.toFixed(1)];
  });
  console.log(
    `\n${phase}: ${whole.toFixed(2)} ms for ${times.length} ops; others used ${(100 * noise).toFixed(0)} % of the machine\n`,
  );
  console.log(markdownTable(['op', 'calls', 'ms', 'share', 'GB/s of weights'], rows));
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      phase: { type: 'string', default: Object.keys(PHASES).join() },
      float: { type: 'boolean', default: false },
      context: { type: 'string', default: '48' },
      threads: { type: 'string' },
      reps: { type: 'string', default: '10' },
    },
  });
  const phases = values.phase.split(',');
  if (positionals.length !== 1 || phases.some((phase) => !Object.hasOwn(PHASES, phase))) {
    console.error(`profile: expected one model folder and phases of ${Object.keys(PHASES).join(', ')}`);
    process.exit(2);
  }
  const [folder] = positionals;
  const threads = values.threads === undefined ? undefined : Number(values.threads);
  const program = await programOf(folder, values.float, threads);
  const stage = new Stage();
  const weights = await placeWeights(stage, program, folder);
  for (const phase of phases) {
    const cached = PHASES[phase].length === 1 ? Number(values.context) : 0;
    const calls = prepareCalls(stage, program, weights, PHASES[phase], cached);
    await waitForQuiet(LONGEST_WAIT_MS);
    const noise = watchNoise();
    const timed = timeCalls(calls, Number(values.reps));
    printPhase(phase, program, timed, noise());
  }
  stage.close();
}

await main();
