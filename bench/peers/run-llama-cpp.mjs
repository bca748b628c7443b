/**
 * node-llama-cpp on a Q8_0 file: run.mjs starts it with { file, threads, sequences, phases, reps }. The prebuilt
 * library picks its own instructions.
 */
import { pinnedVersion, runPhases } from './phases.mjs';

const { file, threads, sequences: count, ...job } = JSON.parse(process.argv[2]);

await runPhases(job, async () => {
  const { getLlama, LlamaLogLevel } = await import('node-llama-cpp');
  const quiet = { logLevel: LlamaLogLevel.error, progressLogs: false };
  const llama = await getLlama({ gpu: false, build: 'never', maxThreads: threads, ...quiet });
  const model = await llama.loadModel({ modelPath: file });
  const context = await model.createContext({ contextSize: 1024, batchSize: 512, sequences: count, threads });
  const sequences = Array.from({ length: count }, () => context.getSequence());
  /** Evaluates `ids`, then makes tokens: the first costs the evaluation of `ids`, each further one a step. */
  const make = async (sequence, ids, tokens) => {
    let made = 0;
    for await (const _ of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) if (++made >= tokens) break;
  };
  return {
    version: pinnedVersion('node-llama-cpp'),
    attention: 'its default, cache float16',
    async generate(prompts, steps) {
      for (const sequence of sequences) await sequence.clearHistory();
      const start = performance.now();
      if (steps === 0) {
        await make(sequences[0], prompts[0], 1);
        return { firstMs: performance.now() - start, restMs: 0 };
      }
      // All but the last token of the prompts, from which the steps begin.
      await Promise.all(prompts.map((ids, i) => sequences[i].evaluateWithoutGeneratingNewTokens(ids.slice(0, -1))));
      const fed = performance.now();
      await Promise.all(prompts.map((ids, i) => make(sequences[i], ids.slice(-1), steps)));
      return { firstMs: fed - start, restMs: performance.now() - fed };
    },
  };
});
process.exit();
