/**
 * Counts the outlier columns that LLM.int8() meets in a model's linears: the model cut to its first blocks is run
 * eagerly over random token ids, and the input of every 8-bit linear is looked at. A benchmark whose linears meet none
 * has not done the method's work.
 *
 *   node bench/outlier-columns.mjs MODEL [--blocks 4] [--threshold 6]
 */
import { readFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  buildModel,
  eagerContext,
  Linear8bitLt,
  openCheckpoint,
  readTensor,
  replaceLinear,
  setModuleTensorToDevice,
  tensor,
  uniformGenerator,
} from 'metashard';
import { markdownTable } from './table.mjs';

const PROMPT = 16;
const SEQUENCES = 8;
const PREFILL = 512;

/**
 * Columns met per linear of a kind (`self_attn.q_proj`): { kind, width, decode1, decode8, prefill512 }, each the mean
 * over the blocks, and 0 where any linear of that kind met none. Decode rows are the last tokens of 8 sequences, alone
 * and together.
 */
export async function countOutlierColumns(folder, { blocks = 4, threshold = 6 } = {}) {
  const { model, config } = await loadFirstBlocks(folder, blocks, threshold);
  const random = uniformGenerator(7);
  const ids = (count) =>
    tensor(
      Int32Array.from({ length: count }, () => Math.floor(random() * config.vocabSize)),
      { dtype: 'int32' },
    );
  const kinds = new Map();
  const observe = (run, look) => {
    const undo = watchLinears(model, (path, x) => {
      const kind = path.split('.').slice(-2).join('.');
      const entry = kinds.get(kind) ?? { kind, width: x.shape[1], decode1: [], decode8: [], prefill512: [] };
      kinds.set(kind, entry);
      look(entry, x);
    });
    run();
    undo();
  };
  observe(
    () => forward(model, ids(SEQUENCES * PROMPT), Array(SEQUENCES).fill(PROMPT)),
    (entry, x) => {
      const last = Array.from({ length: SEQUENCES }, (_, s) => (s + 1) * PROMPT - 1);
      entry.decode8.push(columnsBeyond(x, threshold, last));
      for (const row of last) entry.decode1.push(columnsBeyond(x, threshold, [row]));
    },
  );
  observe(
    () => forward(model, ids(PREFILL), [PREFILL]),
    (entry, x) =>
      entry.prefill512.push(
        columnsBeyond(
          x,
          threshold,
          Array.from({ length: PREFILL }, (_, row) => row),
        ),
      ),
  );
  const mean = (values) => (values.includes(0) ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length);
  return [...kinds.values()].map(({ kind, width, ...counts }) => ({
    kind,
    width,
    ...Object.fromEntries(Object.entries(counts).map(([phase, values]) => [phase, mean(values)])),
  }));
}

async function loadFirstBlocks(folder, blocks, threshold) {
  const raw = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'));
  const depth = raw.model_type === 'bloom' ? 'n_layer' : 'num_hidden_layers';
  const { model, config } = buildModel({ ...raw, [depth]: Math.min(blocks, raw[depth]) });
  replaceLinear(model, { threshold });
  const index = await openCheckpoint(folder);
  for (const [name] of model.namedParameters()) {
    setModuleTensorToDevice(model, name, 'cpu', { value: await readTensor(index, name) });
  }
  return { model, config };
}

/** Without logits: the head is left out by asking for no rows but one. */
function forward(model, inputIds, lengths) {
  const outputRows = tensor(Int32Array.of(0), { dtype: 'int32' });
  model.forward({ inputIds, outputRows }, eagerContext(model, lengths));
}

/** Shows `look` the path and input of every 8-bit linear; the returned function ends that. */
function watchLinears(model, look) {
  const watched = model.namedModules().filter(([, module]) => module instanceof Linear8bitLt);
  for (const [path, module] of watched) {
    const { forward } = module;
    module.forward = (x) => {
      look(path, x);
      return forward.call(module, x);
    };
  }
  return () => {
    for (const [, module] of watched) delete module.forward;
  };
}

/** Columns of x [T, K] with an element that is not below the threshold, over these rows. */
function columnsBeyond(x, threshold, rows) {
  const K = x.shape[1];
  const values = x.contiguous().toFloat32Array();
  const beyond = new Uint8Array(K);
  for (const row of rows) {
    for (let k = 0; k < K; k++) if (!(Math.abs(values[row * K + k]) < threshold)) beyond[k] = 1;
  }
  return beyond.reduce((sum, one) => sum + one, 0);
}

/**
 * The counts of models, [{ model, outliers }], as a table; a count of 0 says that a model is no measure of the method.
 */
export function outlierTable(models) {
  const rows = models.flatMap(({ model, outliers }) =>
    outliers.map(({ kind, width, decode1, decode8, prefill512 }) => [
      `${model} ${kind}`,
      width,
      ...[decode1, decode8, prefill512].map((count) => (count === 0 ? 'invalid: 0' : count.toFixed(1))),
    ]),
  );
  return markdownTable(['linear', 'inputs', '1 row', '8 rows', '512 rows'], rows);
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { blocks: { type: 'string', default: '4' }, threshold: { type: 'string', default: '6' } },
  });
  if (positionals.length !== 1) {
    console.error('usage: node bench/outlier-columns.mjs MODEL [--blocks 4] [--threshold 6]');
    process.exit(2);
  }
  const counts = await countOutlierColumns(positionals[0], {
    blocks: Number(values.blocks),
    threshold: Number(values.threshold),
  });
  console.log(outlierTable([{ model: basename(resolve(positionals[0])), outliers: counts }]));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
