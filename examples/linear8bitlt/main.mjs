/**
 * The 8-bit walk-through: a float16 model, its 8-bit twin, the moment its weights become int8, and what is left of them.
 * Run it with `node examples/linear8bitlt/main.mjs [device]`; the device is cpu unless named.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { initEmptyWeights, Linear8bitLt, loadSafetensors, nn, randn, saveSafetensors } from 'metashard';

const device = process.argv[2] ?? 'cpu';

/** The first values of a tensor's first row. */
const show = (tensor) =>
  tensor
    .toArray()[0]
    .slice(0, 6)
    .map((value) => Number(value.toPrecision(4)))
    .join(', ');

// 1. A model in float16, trained somewhere and saved.
const model = new nn.Sequential(
  new nn.Linear(64, 64, { dtype: 'float16' }),
  new nn.Linear(64, 64, { dtype: 'float16' }),
);
const folder = await mkdtemp(join(tmpdir(), 'metashard-'));
const file = join(folder, 'model.safetensors');

try {
  await saveSafetensors(file, model.stateDict());

  // 2. Its twin with 8-bit linears. hasFp16Weights: false: the float weights are dropped once they are int8.
  const model8 = new nn.Sequential(
    new Linear8bitLt(64, 64, { hasFp16Weights: false, dtype: 'float16' }),
    new Linear8bitLt(64, 64, { hasFp16Weights: false, dtype: 'float16' }),
  );
  model8.loadStateDict(await loadSafetensors(file));
  const { weight } = model8.at(0);
  const original = weight.data;
  console.log(`before .to('${device}'): ${weight.dtype}: ${show(weight)}`);

  // 3. Reaching a real device quantizes, once, however often it is called.
  model8.to(device).to(device);
  console.log(`after:  ${weight.dtype}: ${show(weight.CB.to('cpu'))}`);
  console.log(
    `SCB, the largest magnitude of each row: ${weight.SCB.to('cpu')
      .toArray()
      .slice(0, 4)
      .map((s) => s.toPrecision(4))
      .join(', ')}, …`,
  );
  console.log(`native quantizations of this weight: ${weight.quantizeCalls}`);

  // 4. The values come back as CB · SCB / 127, with one SCB for each row (each output), not for each column.
  const CB = weight.CB.to('cpu').toArray();
  const SCB = weight.SCB.to('cpu').toArray();
  const recovered = CB.map((row, output) => row.map((value) => (value * SCB[output]) / 127));
  const wanted = original.toArray();
  const worst = Math.max(...recovered.flatMap((row, n) => row.map((value, k) => Math.abs(value - wanted[n][k]))));
  console.log(
    `recovered: ${recovered[0]
      .slice(0, 6)
      .map((value) => Number(value.toPrecision(4)))
      .join(', ')}`,
  );
  console.log(`largest error ${worst.toExponential(1)}, half a step is ${(Math.max(...SCB) / 254).toExponential(1)}`);

  // 5. The two models side by side.
  const x = randn([3, 64], { dtype: 'float16', seed: 1 });
  console.log(`float16 output: ${show(model.forward(x))}`);
  console.log(`int8 output:    ${show(model8.forward(x.to(device)).to('cpu'))}`);
  console.log(`state dict now: ${[...model8.stateDict().keys()].join(', ')}`);
} finally {
  await rm(folder, { recursive: true });
}

// 6. A model far larger than any memory, built without memory: 40 TB of float32 weights.
const rss = process.memoryUsage.rss();
const start = performance.now();
const huge = initEmptyWeights(
  () => new nn.Sequential(Array.from({ length: 1000 }, () => new nn.Linear(100_000, 100_000))),
);
const milliseconds = performance.now() - start;
const grown = (process.memoryUsage.rss() - rss) / 1e6;
const parameters = huge.parameters().reduce((sum, parameter) => sum + parameter.numel, 0);
console.log(
  `1000 × Linear(100000, 100000): ${parameters.toExponential(2)} parameters on ${huge.at(0).weight.device}, ` +
    `${milliseconds.toFixed(1)} ms, ${grown.toFixed(1)} MB`,
);
