/**
 * The child process of bench/end-to-end.mjs: loads one model and runs a phase whenever it is asked to, so that its
 * memory and start are its own and the parent can let several models take turns. Not for calling by hand.
 */
import { loadModel, native, specBytes, uniformGenerator } from 'metashard';
import { watchNoise } from './noise.mjs';

const PHASES = {
  prefill512: { sequences: 1, prompt: 512, steps: 0 },
  decode1: { sequences: 1, prompt: 16, steps: 64 },
  decode8: { sequences: 8, prompt: 16, steps: 64 },
  burst1: { sequences: 1, prompt: 16, steps: 4 },
  burst8: { sequences: 8, prompt: 16, steps: 4 },
};

const [folder, optionsJson] = process.argv.slice(2);
const options = JSON.parse(optionsJson);
const random = uniformGenerator(3);

const loadNoise = watchNoise();
const started = performance.now();
const model = await loadModel(folder, { devices: ['cpu'], ...options });
const loadMs = performance.now() - started;
await generate(PHASES.decode1, 1);
process.send({
  loadMs,
  startToFirstTokenMs: performance.now(),
  noise: loadNoise(),
  ...memory(),
  facts: facts(),
  isa: JSON.parse(native().describeBackend('cpu')).isa,
});

// The parent is gone: so is the reason to live.
process.on('disconnect', () => process.exit());
process.on('message', async ({ phase }) => {
  if (phase === 'close') {
    process.send(memory());
    await model.dispose();
    process.disconnect();
    return;
  }
  const spec = PHASES[phase];
  const noise = watchNoise();
  const { firstMs, restMs } = await generate(spec, spec.steps + 1);
  process.send({ ms: spec.steps === 0 ? firstMs : restMs, noise: noise() });
});

/** Milliseconds to the first token of every sequence, and from there to the last. */
async function generate({ sequences, prompt }, maxNewTokens) {
  const prompts = Array.from({ length: sequences }, () =>
    Array.from({ length: prompt }, () => Math.floor(random() * 30000) + 300),
  );
  const start = performance.now();
  let first = 0;
  let pieces = 0;
  for await (const _ of model.generate(prompts, { maxNewTokens, doSample: false, ignoreEos: true })) {
    if (++pieces === sequences) first = performance.now();
  }
  return { firstMs: first - start, restMs: performance.now() - first };
}

function memory() {
  return { peakResidentBytes: native().processMemory().peakResidentBytes };
}

/** What a step must read and compute, what the plan holds, and the dtypes that a row must name. */
function facts() {
  const { tensors, ops, outputs } = model.recorded.program;
  const bytesOf = ({ dims, dtype, layout }) => specBytes({ dims, dtype, layout });
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const weightsOf = ({ inputs }) => inputs.filter((id) => tensors[id]?.kind === 'weight');
  const matrixOf = (op) => tensors[weightsOf(op).find((id) => tensors[id].dims.length === 2)];
  // Of an embedding table that is only gathered from, a step reads next to nothing.
  const streamed = new Set(ops.filter(({ op }) => !op.includes('embedding')).flatMap(weightsOf));
  const caches = tensors.filter(({ kind }) => kind === 'cache');
  const head = ops.find((op) => op.outputs.includes(outputs.logits));
  const int8Linears = ops.filter(({ op, outputs: [out] }) => op === 'int8_linear' && tensors[out].dims[0] === 'tokens');
  const [{ weightsBytes, kvCacheBytes, activationsBytes, scratchBytes }] = model.plan.devices;
  return {
    streamedBytes: sum([...streamed].map((id) => bytesOf(tensors[id]))),
    cacheBytesPerToken: sum(
      caches.map(({ dims: [, heads, , size], dtype }) => bytesOf({ dims: [heads, size], dtype })),
    ),
    int8OperationsPerToken: sum(int8Linears.map((op) => 2 * matrixOf(op).dims[0] * matrixOf(op).dims[1])),
    headDtype: matrixOf(head).dtype,
    cacheDtype: caches[0].dtype,
    planned: { weightsBytes, kvCacheBytes, activationsBytes, scratchBytes },
  };
}
