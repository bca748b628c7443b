/**
 * Where the time of a step goes: runs the recorded program of a model op by op on one CPU device, in this process, and prints the ops by cost.
 * For those who tune kernels; it reaches into dispatch's compiled files, because nothing public hands out single ops.
 *
 *   node bench/profile.mjs MODEL [--phase prefill|decode|decode8] [--float] [--context 16] [--threads 2] [--reps 10]
 */
import { parseArgs } from 'node:util';
import { findTiedParameters, native } from 'metashard';
import { DeviceExecutor } from '../packages/dispatch/dist/device-executor.js';
import { resolveDevices } from '../packages/dispatch/dist/devices.js';
import { loadWeights } from '../packages/dispatch/dist/load-weights.js';
import { openModelSource } from '../packages/dispatch/dist/model-source.js';
import { planRecorded, recordModel } from '../packages/dispatch/dist/plan-device-map.js';
import { Control, Ring } from '../packages/dispatch/dist/ring.js';
import { describeBatch } from '../packages/dispatch/dist/scheduler.js';
import { StepView, slotWords, writeStep } from '../packages/dispatch/dist/step.js';
import { findWeightSources, instructionsFor } from '../packages/dispatch/dist/weight-sources.js';
import { watchNoise } from './noise.mjs';
import { median } from './statistics.mjs';
import { markdownTable } from './table.mjs';

const BLOCK = 16;

/** One device, opened and loaded as an executor's worker would have it. */
async function openExecutor(folder, { float, maxSeqLen, maxBatchSize }) {
  const options = { loadIn8bit: !float, devices: ['cpu'] };
  const source = await openModelSource(folder, options);
  const recorded = recordModel(source.model, { maxSeqLen, maxBatchSize });
  const planned = planRecorded(recorded, resolveDevices(options), { deviceMap: 'auto', model: folder });
  const { program } = recorded;
  const [[device, memory]] = planned.memory;
  const words = slotWords(program, planned.dims);
  const control = Control.allocate(maxBatchSize, 1);
  const executor = new DeviceExecutor({
    worker: 0,
    device,
    budgetBytes: 0,
    program,
    segments: planned.segments,
    segmentCount: 1,
    workerOfSegment: [0],
    dims: planned.dims,
    arenaBytes: memory.arenaBytes,
    scratchBytes: memory.scratchBytes,
    weights: [...memory.weights],
    caches: [...memory.caches],
    constants: [...memory.constants],
    inputs: [...memory.inputs],
    arenas: new Map([...memory.arenas].map(([segment, arena]) => [segment, arena.offsets])),
    rings: [Ring.allocate(words, 2).shared],
    tokenRing: Ring.allocate(maxBatchSize + 1, 2).shared,
    control: control.shared,
    controlRows: maxBatchSize,
    slotWords: words,
    tokenWords: maxBatchSize + 1,
    sampler: null,
    port: null,
  });
  const sources = findWeightSources({
    program,
    checkpoint: source.checkpoint,
    baseModelPrefix: source.architecture.baseModelPrefix,
    tied: findTiedParameters(source.model),
    ignore: source.architecture.ignoredTensors,
  });
  loadWeights(
    executor,
    instructionsFor(memory.weights, sources),
    () => {},
    () => false,
  );
  return { executor, program, words, open: executor.segments.get(0), blocksPerSequence: maxSeqLen / BLOCK };
}

/** A step of `sequences` rows of `length` new tokens behind `cached` ones. */
function stepOf({ executor, words, blocksPerSequence }, sequences, length, cached) {
  const rows = Array.from({ length: sequences }, (_, s) => ({
    ids: Int32Array.from({ length }, (_, i) => (i * 7919 + s * 31) % 31000),
    cached,
    blocks: Int32Array.from({ length: blocksPerSequence }, (_, b) => s * blocksPerSequence + b),
  }));
  const slot = new Int32Array(words);
  writeStep(slot, executor.inputs, describeBatch(0, 0, rows, blocksPerSequence, 'last', [...rows.keys()]));
  return new StepView(slot, executor.inputs);
}

/** Milliseconds of each op, the median of `reps`, and of the whole step as one call. */
function timeOps({ executor, open }, step, reps) {
  const { ops } = open.segment;
  const dims = Int32Array.of(step.dims.tokens, step.dims.sequences, step.dims.outputs);
  executor.begin(open, step);
  for (const { tensor, spec } of open.inputs) {
    if (spec.dims[0] === 'outputs') native().write(executor.buffer(tensor), 0, step.value(tensor));
  }
  const times = ops.map(() => []);
  const whole = [];
  for (let rep = 0; rep <= reps; rep++) {
    const started = performance.now();
    executor.run(open, dims, 0, ops.length);
    if (rep > 0) whole.push(performance.now() - started);
    for (let i = 0; i < ops.length; i++) {
      const before = performance.now();
      executor.run(open, dims, i, i + 1);
      if (rep > 0) times[i].push(performance.now() - before);
    }
  }
  return { ops, times: times.map(median), whole: median(whole) };
}

/** Ops of the same name and the same place in a block, summed over the blocks. */
function groupOps({ ops, times }, program) {
  const groups = new Map();
  for (const [i, { op, module, inputs }] of ops.entries()) {
    const weight = inputs.map((id) => program.tensors[id]).find((tensor) => tensor?.kind === 'weight');
    const shape = op.includes('linear') && weight !== undefined ? ` ${weight.dims.join('×')}` : '';
    const key = `${op}${shape} (${module.replace(/\.\d+(?=\.|$)/g, '.*')})`;
    const group = groups.get(key) ?? { key, calls: 0, ms: 0 };
    group.calls++;
    group.ms += times[i];
    groups.set(key, group);
  }
  return [...groups.values()].sort((a, b) => b.ms - a.ms);
}

const PHASES = {
  prefill: { sequences: 1, length: 512 },
  decode: { sequences: 1, length: 1 },
  decode8: { sequences: 8, length: 1 },
};

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      phase: { type: 'string', default: 'prefill,decode,decode8' },
      float: { type: 'boolean', default: false },
      context: { type: 'string', default: '48' },
      threads: { type: 'string' },
      reps: { type: 'string', default: '10' },
    },
  });
  if (positionals.length !== 1) {
    console.error(
      'usage: node bench/profile.mjs MODEL [--phase prefill|decode|decode8] [--float] [--context 48] [--threads 2] [--reps 10]',
    );
    process.exit(2);
  }
  const opened = await openExecutor(positionals[0], { float: values.float, maxSeqLen: 1024, maxBatchSize: 8 });
  if (values.threads !== undefined) native().configureBackend('cpu', 'threads', values.threads);
  for (const phase of values.phase.split(',')) {
    const { sequences, length } = PHASES[phase];
    const timed = timeOps(
      opened,
      stepOf(opened, sequences, length, length === 1 ? Number(values.context) : 0),
      Number(values.reps),
    );
    const groups = groupOps(timed, opened.program);
    const sum = groups.reduce((total, { ms }) => total + ms, 0);
    console.log(
      `\n${phase}: ${timed.whole.toFixed(2)} ms the step in one call, ${sum.toFixed(2)} ms its ${timed.ops.length} ops one by one\n`,
    );
    const rows = groups
      .slice(0, 20)
      .map(({ key, calls, ms }) => [key, calls, ms.toFixed(3), `${((100 * ms) / sum).toFixed(1)} %`]);
    console.log(markdownTable(['op', 'calls', 'ms', 'share'], rows));
  }
  opened.executor.close();
}

await main();
