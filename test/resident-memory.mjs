/**
 * A process of its own for executors.test.ts: what loading a model and a forward of the largest step add to its resident memory, beside what the plan says.
 * `node resident-memory.mjs FOLDER OPTIONS_JSON` prints { baselineBytes, peakBytes, plannedBytes }; the baseline is a process whose devices are open and empty.
 */
import { findTiedParameters, LoadedModel, native } from 'metashard';
import { Executors } from '../packages/dispatch/dist/executors.js';
import { planSource, recordSource } from '../packages/dispatch/dist/load-model.js';
import { openModelSource } from '../packages/dispatch/dist/model-source.js';
import { findWeightSources, instructionsFor } from '../packages/dispatch/dist/weight-sources.js';

const [folder, json] = process.argv.slice(2);
const options = JSON.parse(json);
const source = await openModelSource(folder, options);
const recorded = recordSource(source, options);
const planned = planSource(source, recorded, options);
const { program, maxSeqLen, maxBatchSize, vocabSize } = recorded;
const sources = findWeightSources({
  program,
  checkpoint: source.checkpoint,
  baseModelPrefix: source.architecture.baseModelPrefix,
  tied: findTiedParameters(source.model),
  ignore: source.architecture.ignoredTensors,
});
const sampler = { sequences: maxBatchSize, maxSeqLen, vocabSize };
const executors = await Executors.start({ program, planned, dims: planned.dims, sampler });
const baselineBytes = native().processMemory().residentBytes;

await executors.load(
  new Map([...planned.memory].map(([device, { weights }]) => [device, instructionsFor(weights, sources)])),
  () => {},
);
const model = new LoadedModel({ source, recorded, planned, executors, tokenizer: null, generationDefaults: {} });
const ids = Array.from({ length: maxSeqLen }, (_, i) => 1 + (i % (vocabSize - 1)));
const prompts = Array.from({ length: maxBatchSize }, () => ids.slice(1));
for await (const _ of model.generate(prompts, { maxNewTokens: 1, ignoreEos: true }));
const plannedBytes = (await model.stats()).reduce((sum, device) => sum + device.plannedBytes, 0);
console.log(JSON.stringify({ baselineBytes, peakBytes: native().processMemory().peakResidentBytes, plannedBytes }));
await model.dispose();
