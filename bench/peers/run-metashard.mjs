/**
 * metashard's side: run.mjs starts it with { file (the model's folder), threads, sequences, options, phases, reps }.
 */
import { loadModel, native, specBytes } from 'metashard';
import { runPhases } from './phases.mjs';

const job = JSON.parse(process.argv[2]);

/** Bytes a step streams, of its weights and per token of a sequence, and what the plan holds in all. */
function facts(model) {
  const { tensors, ops } = model.recorded.program;
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const weightsOf = ({ inputs }) => inputs.filter((id) => tensors[id]?.kind === 'weight');
  // Of an embedding table that is only gathered from, a step reads next to nothing.
  const streamed = new Set(ops.filter(({ op }) => !op.includes('embedding')).flatMap(weightsOf));
  const caches = tensors.filter(({ kind }) => kind === 'cache');
  const planned = model.plan.devices.map(({ weightsBytes, kvCacheBytes }) => weightsBytes + kvCacheBytes);
  return {
    streamedBytes: sum([...streamed].map((id) => specBytes(tensors[id]))),
    cacheBytesPerToken: sum(
      caches.map(({ dims: [, heads, , size], dtype }) => specBytes({ dims: [heads, size], dtype })),
    ),
    plannedBytes: sum(planned),
    isa: JSON.parse(native().describeBackend('cpu')).isa,
  };
}

await runPhases(job, async () => {
  const { file, threads, sequences, options } = job;
  const started = performance.now();
  const model = await loadModel(file, {
    devices: ['cpu'],
    threads,
    maxSeqLen: 1024,
    maxBatchSize: sequences,
    ...options,
  });
  const loadMs = performance.now() - started;
  const cache = model.recorded.program.tensors.find(({ kind }) => kind === 'cache').dtype;
  return {
    version: 'this checkout',
    attention: `${options.attention ?? 'float32'}, cache ${cache}`,
    facts: { ...facts(model), loadMs },
    async generate(prompts, steps) {
      const start = performance.now();
      let [first, pieces] = [0, 0];
      const limits = { maxNewTokens: steps + 1, doSample: false, ignoreEos: true };
      for await (const _ of model.generate(prompts, limits)) if (++pieces === prompts.length) first = performance.now();
      return { firstMs: first - start, restMs: performance.now() - first };
    },
  };
});
// The workers are alive; nothing is waited for.
process.exit();
