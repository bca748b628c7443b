/**
 * Plans BLOOM-176B over the devices of the YAML files here (all, or those named), then runs a model of as many blocks
 * that is narrow enough for any machine: random weights are written, loaded in 8 bits over eight CPU devices, and the
 * tokens compared with those of one device.
 *
 *   node examples/bloom-176b/main.mjs [8x40GB …]
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  buildModel,
  formatPlanTable,
  loadConfig,
  loadModel,
  planModel,
  saveSafetensors,
  tensor,
  toLoadOptions,
  uniformGenerator,
} from 'metashard';

const HERE = fileURLToPath(new URL('.', import.meta.url));
const bloom = JSON.parse(readFileSync(join(HERE, 'config.json'), 'utf8'));
const NARROW = { ...bloom, hidden_size: 64, n_head: 4, vocab_size: 1000, torch_dtype: 'float32' };

async function planFiles(names) {
  const files = readdirSync(HERE).filter((name) => name.endsWith('.yaml'));
  for (const file of files.filter((name) => names.length === 0 || names.includes(name.replace('.yaml', '')))) {
    const config = loadConfig(join(HERE, file));
    console.log(`${file}\n${formatPlanTable(await planModel(config.model, toLoadOptions(config)))}\n`);
  }
}

/** Norms of 1 and biases of 0 as in a new model; matrices between -0.25 and 0.25. */
async function writeNarrow(folder) {
  const random = uniformGenerator(176);
  const { model } = buildModel(NARROW);
  const weights = new Map();
  for (const [name, { shape }] of model.namedParameters()) {
    const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
    const isNorm = /layernorm|ln_f/.test(name);
    for (let i = 0; i < values.length; i++) values[i] = shape.length > 1 ? (random() - 0.5) / 2 : 0;
    if (isNorm && name.endsWith('weight')) values.fill(1);
    weights.set(name, tensor(values, { shape }));
  }
  await saveSafetensors(join(folder, 'model.safetensors'), weights);
  writeFileSync(join(folder, 'config.json'), JSON.stringify(NARROW));
}

async function tokensOver(folder, count) {
  const devices = Array.from({ length: count }, (_, i) => `cpu:${i}`);
  const options = { devices, deviceMap: 'balanced', loadIn8bit: true, maxSeqLen: 32 };
  const model = await loadModel(folder, { ...options, offloadFolder: join(folder, 'store') });
  try {
    if (count > 1) console.log(formatPlanTable(model.plan));
    const tokens = [];
    for await (const { tokenIds } of model.generate([[1, 7, 6]], { maxNewTokens: 16, ignoreEos: true }))
      tokens.push(...tokenIds);
    return tokens;
  } finally {
    await model.dispose();
  }
}

await planFiles(process.argv.slice(2));
const folder = mkdtempSync(join(tmpdir(), 'bloom-70-blocks-'));
try {
  await writeNarrow(folder);
  const [many, one] = [await tokensOver(folder, 8), await tokensOver(folder, 1)];
  const same = many.join() === one.join();
  console.log(
    `${many.length} tokens over 8 devices, ${same ? 'the same as' : 'others than'} on one: ${many.join(' ')}`,
  );
  process.exitCode = same ? 0 : 1;
} finally {
  rmSync(folder, { recursive: true });
}
