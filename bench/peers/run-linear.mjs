/**
 * One int8 linear of metashard alone, int8_quantize and int8_linear, over float32 activations with 7 outlier columns
 * of 4096: run.mjs starts it with { size, rows, threads, reps, probe }. The weights rotate through more than 512 MB, so
 * that they come from memory.
 */
import { ensureBackend, native } from 'metashard';
import { Ceilings } from '../ceilings.mjs';
import { Stage } from '../stage.mjs';
import { measureBeside } from './phases.mjs';

const THRESHOLD = 6;
const SAMPLE_MS = 100;
const SAMPLES_A_REPETITION = 4;
const { size, rows, threads, reps, ...job } = JSON.parse(process.argv[2]);
ensureBackend('cpu');
native().configureBackend('cpu', 'threads', String(threads));

/** Calls of quantize and linear over T rows, one per copy of the weight. */
function calls(stage, T) {
  const x = stage.activations(T, size);
  const quantized = [stage.tensor([T, size], 'int8'), stage.tensor([T]), stage.tensor([size + 1], 'int32')];
  const quantize = stage.call('int8_quantize', [x], quantized, [THRESHOLD, 0]);
  const { CB, SCB } = stage.int8Weight(size, size);
  const out = stage.tensor([T, size]);
  return stage.rotate(CB).map((copy) => {
    const linear = stage.call('int8_linear', [x, ...quantized, copy, SCB, null], [out], [THRESHOLD, 0]);
    return () => {
      quantize();
      linear();
    };
  });
}

/** Mean microseconds of a call, over SAMPLE_MS. */
function sample(alternatives) {
  const start = performance.now();
  let count = 0;
  while (performance.now() - start < SAMPLE_MS) alternatives[count++ % alternatives.length]();
  return ((performance.now() - start) / count) * 1e3;
}

const probe = new Ceilings(job.probe.folder, job.probe.threads);
const result = {};
for (const T of rows) {
  const stage = new Stage();
  const alternatives = calls(stage, T);
  sample(alternatives);
  result[T] = [];
  for (let rep = 0; rep < reps * SAMPLES_A_REPETITION; rep++) {
    result[T].push(await measureBeside(probe, () => ({ us: sample(alternatives) })));
  }
  stage.close();
}
probe.close();
console.log(JSON.stringify({ version: 'this checkout', rows: result }));
