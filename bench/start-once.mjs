/**
 * The child process of bench/start.mjs: from its own start to the first token behind 16 token ids, once. Not for calling by
 * hand.
 */
import { loadModel, native } from 'metashard';
import { watchNoise } from './noise.mjs';

const noise = watchNoise();

const [folder, options] = process.argv.slice(2);
const importedMs = performance.now();
const model = await loadModel(folder, { devices: ['cpu'], ...JSON.parse(options) });
const loadedMs = performance.now();
const prompt = Array.from({ length: 16 }, (_, i) => 300 + i * 7);
for await (const _ of model.generate(prompt, { maxNewTokens: 1, doSample: false, ignoreEos: true }));
const firstTokenMs = performance.now();
const [{ weightsBytes, kvCacheBytes }] = model.plan.devices;
const { peakResidentBytes } = native().processMemory();
const { isa } = JSON.parse(native().describeBackend('cpu'));
process.send({
  importedMs,
  loadedMs,
  firstTokenMs,
  noise: noise(),
  peakResidentBytes,
  heldBytes: weightsBytes + kvCacheBytes,
  isa,
});
await model.dispose();
process.disconnect();
