/**
 * onnxruntime-node on a graph of convert_onnx.py: run.mjs starts it with { file, threads, shape: { layers, kvHeads,
 * headSize }, phases, reps }.
 */
import { pinnedVersion, runPhases } from './phases.mjs';

const { file, threads, shape, ...job } = JSON.parse(process.argv[2]);

function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return BigInt(best);
}

await runPhases(job, async () => {
  const { default: ort } = await import('onnxruntime-node');
  const session = await ort.InferenceSession.create(file, {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    graphOptimizationLevel: 'all',
    executionProviders: ['cpu'],
  });
  const caches = Array.from({ length: shape.layers }, (_, i) => [`key_${i}`, `value_${i}`]).flat();
  const wantsLengths = session.inputNames.includes('seqlens_k');

  /** One run over `ids` [B, n]; `past` takes the cache on. Returns the next id of every sequence. */
  async function run(ids, B, past) {
    const total = past.length + ids.length / B;
    const lengths = wantsLengths ? { seqlens_k: new ort.Tensor('int32', new Int32Array(B).fill(total - 1), [B]) } : {};
    const { logits, ...present } = await session.run({
      input_ids: new ort.Tensor('int64', ids, [B, ids.length / B]),
      total_sequence_length: new ort.Tensor('int32', Int32Array.of(total), []),
      ...lengths,
      ...past.tensors,
    });
    past.length = total;
    for (const name of caches) past.tensors[`past_${name}`] = present[`present_${name}`];
    const V = logits.data.length / B;
    return BigInt64Array.from({ length: B }, (_, row) => largest(logits.data.subarray(row * V, (row + 1) * V)));
  }

  return {
    version: pinnedVersion('onnxruntime-node'),
    attention: 'float32, cache float32',
    async generate(prompts, steps) {
      const B = prompts.length;
      const empty = () => new ort.Tensor('float32', new Float32Array(0), [B, shape.kvHeads, 0, shape.headSize]);
      const past = { length: 0, tensors: Object.fromEntries(caches.map((name) => [`past_${name}`, empty()])) };
      const start = performance.now();
      let ids = await run(BigInt64Array.from(prompts.flat(), BigInt), B, past);
      const first = performance.now();
      for (let i = 0; i < steps; i++) ids = await run(ids, B, past);
      return { firstMs: first - start, restMs: performance.now() - first };
    },
  };
});
