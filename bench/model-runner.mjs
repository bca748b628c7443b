/**
 * The child process of bench/end-to-end.mjs: loads one model and runs a phase whenever it is asked to, so that its memory and start are its own and the
 * parent can let several models take turns. Not for calling by hand.
 */
import { loadModel, native, specBytes, uniformGenerator } from 'metashard';
import { watchNoise } from './noise.mjs';

const PHASES = {
  prefill512: { sequences: 1, prompt: 512, steps: 0 },
  decode1: { sequences: 1, prompt: 16, steps: 64 },
  decode8: { sequences: 8, prompt: 16, steps: 64 },
};

const [folder, optionsJson] = process.argv.slice(2);
const options = JSON.parse(optionsJson);
const random = uniformGenerator(3);

const started = performance.now();
const model = await loadModel(folder, { devices: ['cpu'], ...options });
const loadMs = performance.now() - started;
await generate(PHASES.decode1, 1);
process.send({
  type: 'ready',
  loadMs,
  startToFirstTokenMs: performance.now(),
  ...memory(),
  facts: facts(),
  isa: JSON.parse(native().describeBackend('cpu')).isa,
});

process.on('message', async ({ phase }) => {
  if (phase === 'close') {
    process.send({ type: 'closed', ...memory() });
    await model.dispose();
    process.disconnect();
    return;
  }
  const spec = PHASES[phase];
  const noise = watchNoise();
  const { firstMs, restMs } = await generate(spec, spec.steps + 1);
  process.send({ type: 'ran', ms: spec.steps === 0 ? firstMs : restMs, noise: noise() });
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

/**
 * What a step must read and compute: bytes of all weights but embedding tables that are only gathered from, cache bytes a token, operations of the 8-bit
 * linears a token; what the plan holds; and the dtypes that a row must name.
 */
function facts() {
  const { tensors, ops } = model.recorded.program;
  const bytesOf = (tensor) => specBytes({ dims: tensor.dims, dtype: tensor.dtype, layout: tensor.layout });
  const streamed = new Set(
    ops
      .filter(({ op }) => op !== 'embedding')
      .flatMap(({ inputs }) => inputs.filter((id) => tensors[id]?.kind === 'weight')),
  );
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const caches = tensors.filter(({ kind }) => kind === 'cache');
  const int8Linears = ops.filter(({ op }) => op === 'int8_linear').map(({ inputs }) => tensors[inputs[4]]);
  const [{ weightsBytes, kvCacheBytes, activationsBytes, scratchBytes }] = model.plan.devices;
  return {
    streamedBytes: sum([...streamed].map((id) => bytesOf(tensors[id]))),
    cacheBytesPerToken: sum(
      caches.map(({ dims: [, heads, , size], dtype }) => specBytes({ dims: [heads, size], dtype })),
    ),
    int8OperationsPerToken: sum(int8Linears.map(({ dims: [N, K] }) => 2 * N * K)),
    headDtype: tensors[ops.findLast(({ op }) => op === 'linear').inputs[1]].dtype,
    cacheDtype: caches[0].dtype,
    planned: { weightsBytes, kvCacheBytes, activationsBytes, scratchBytes },
  };
}
