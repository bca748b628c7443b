/**
 * Writes a checkpoint of random float16 weights for a config: real safetensors (sharded above 2 GB) and a config.json,
 * no tokenizer. Matrices are N(0, 0.02), norms 1, biases 0; names and shapes come from the module tree. Outlier
 * features are planted as trained models have them (outlier-features.mjs).
 *
 *   node bench/make-model.mjs CONFIG OUT [--seed 0] [--outliers 7]
 *
 * CONFIG: bloom-560m, bloom-1b7, llama-1b1 or the path of a config.json. --outliers counts features per 4096 inputs of
 * a linear.
 */
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  writeFileSync,
  writeSync,
  writevSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { buildModel, float32ToFloat16Bits, nn, uniformGenerator } from 'metashard';
import { MODEL_CONFIGS } from './model-configs.mjs';
import { featureCount, plantFeatures } from './outlier-features.mjs';

const WEIGHT_STD = 0.02;
const SHARD_BYTES = 2e9;
/** Values of the table that all matrices are cut from, and of the longest piece taken at once. */
const TABLE_VALUES = 2 ** 22;
const PIECE_VALUES = 2 ** 19;

/**
 * Writes the checkpoint folder `out`; nothing is done where a complete one from the same arguments lies there already.
 * Returns { folder, bytes, parameters, outlierColumns } (features of the hidden states) and `made`, whether it was
 * written now.
 */
export function makeModel(config, out, { seed = 0, outliers = 7 } = {}) {
  const raw = { ...config, torch_dtype: 'float16' };
  const { model, config: known } = buildModel(raw, { dtype: 'float16' });
  const tensors = describeTensors(model);
  plantFeatures(tensors, known, outliers);
  const recipe = JSON.stringify({ version: 4, seed, outliers, raw });
  const facts = {
    folder: out,
    bytes: tensors.reduce((sum, { nbytes }) => sum + nbytes, 0),
    parameters: tensors.reduce((sum, { nbytes }) => sum + nbytes / 2, 0),
    outlierColumns: featureCount(known.hiddenSize, outliers),
  };
  const stamp = join(out, 'recipe.json');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === recipe) return { ...facts, made: false };
  mkdirSync(out, { recursive: true });
  writeShards(out, tensors, seed);
  writeFileSync(join(out, 'config.json'), `${JSON.stringify(raw, null, 2)}\n`);
  writeFileSync(stamp, recipe);
  return { ...facts, made: true };
}

/**
 * Every parameter, a tied one once: { path, module, name, shape, nbytes, fill, planted }. `fill` is its one value, null
 * for random ones; `planted` takes { index, value } of single elements.
 */
function describeTensors(model) {
  const tensors = [];
  const seen = new Set();
  for (const [path, module] of model.namedModules()) {
    const isNorm = module instanceof nn.LayerNorm || module instanceof nn.RMSNorm;
    for (const [name, parameter] of module.ownParameters()) {
      if (seen.has(parameter)) continue;
      seen.add(parameter);
      const { shape } = parameter;
      const fill = name === 'bias' ? 0 : isNorm ? 1 : null;
      tensors.push({ path, module, name: `${path}.${name}`, shape, nbytes: parameter.numel * 2, fill, planted: [] });
    }
  }
  return tensors;
}

/** Tensors in order, a new shard where the next one would pass SHARD_BYTES. */
function splitShards(tensors) {
  const shards = [];
  let room = 0;
  for (const tensor of tensors) {
    if (tensor.nbytes > room) {
      shards.push([]);
      room = SHARD_BYTES;
    }
    shards.at(-1).push(tensor);
    room -= tensor.nbytes;
  }
  return shards;
}

function writeShards(out, tensors, seed) {
  const random = uniformGenerator(seed);
  const table = normalTable(random);
  const shards = splitShards(tensors);
  const fileOf = (i) =>
    shards.length === 1 ? 'model.safetensors' : `model-${pad(i + 1)}-of-${pad(shards.length)}.safetensors`;
  for (const [i, shard] of shards.entries()) {
    const temporary = join(out, `${fileOf(i)}.tmp`);
    writeShard(temporary, shard, table, random);
    renameSync(temporary, join(out, fileOf(i)));
  }
  if (shards.length === 1) return;
  const weight_map = Object.fromEntries(shards.flatMap((shard, i) => shard.map(({ name }) => [name, fileOf(i)])));
  const total_size = tensors.reduce((sum, { nbytes }) => sum + nbytes, 0);
  writeFileSync(join(out, 'model.safetensors.index.json'), JSON.stringify({ metadata: { total_size }, weight_map }));
}

const pad = (n) => String(n).padStart(5, '0');

/** Length of the header, the header padded to eight bytes, then the tensors one after another. */
function writeShard(path, tensors, table, random) {
  const entries = { __metadata__: { format: 'pt' } };
  let end = 0;
  for (const { name, shape, nbytes } of tensors) {
    entries[name] = { dtype: 'F16', shape, data_offsets: [end, end + nbytes] };
    end += nbytes;
  }
  const json = Buffer.from(JSON.stringify(entries));
  const header = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, ' ');
  header.writeBigUInt64LE(BigInt(header.length - 8));
  json.copy(header, 8);
  const file = openSync(path, 'w');
  try {
    writeSync(file, header);
    for (const tensor of tensors) {
      writeTensor(file, tensor, header.length + entries[tensor.name].data_offsets[0], table, random);
    }
  } finally {
    closeSync(file);
  }
}

/** The tensor's values, then the planted ones over them. */
function writeTensor(file, { shape, fill, planted, nbytes }, at, table, random) {
  if (fill === null) writeNormal(file, nbytes / 2, table, random);
  else writeSync(file, new Uint16Array(shape[0]).fill(float32ToFloat16Bits(fill)));
  for (const { index, value } of planted) {
    writeSync(file, Uint16Array.of(float32ToFloat16Bits(value)), 0, 2, at + 2 * index);
  }
}

/** Pieces of the table, each from a place of its own, many to a system call. */
function writeNormal(file, count, table, random) {
  for (let left = count; left > 0; ) {
    const pieces = [];
    for (; left > 0 && pieces.length < 32; left -= pieces.at(-1).length) {
      const length = Math.min(left, PIECE_VALUES);
      const start = Math.floor(random() * (TABLE_VALUES - length + 1));
      pieces.push(table.subarray(start, start + length));
    }
    const bytes = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
    const written = writevSync(file, pieces);
    if (written !== bytes)
      throw new Error(`make-model: expected to write ${bytes} bytes, got ${written}: is the disk full?`);
  }
}

/** float16 bits of N(0, 0.02) by Box and Muller. */
function normalTable(random) {
  const table = new Uint16Array(TABLE_VALUES);
  for (let i = 0; i < TABLE_VALUES; i += 2) {
    const radius = WEIGHT_STD * Math.sqrt(-2 * Math.log(1 - random()));
    const angle = 2 * Math.PI * random();
    table[i] = float32ToFloat16Bits(radius * Math.cos(angle));
    table[i + 1] = float32ToFloat16Bits(radius * Math.sin(angle));
  }
  return table;
}

/** The config of a built-in name or of a config.json. */
export function readConfig(nameOrFile) {
  if (Object.hasOwn(MODEL_CONFIGS, nameOrFile)) return MODEL_CONFIGS[nameOrFile];
  if (existsSync(nameOrFile)) return JSON.parse(readFileSync(nameOrFile, 'utf8'));
  throw new Error(
    `config: expected ${Object.keys(MODEL_CONFIGS).join(', ')} or the path of a config.json, got ${nameOrFile}`,
  );
}

function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { seed: { type: 'string', default: '0' }, outliers: { type: 'string', default: '7' } },
  });
  const [config, out] = positionals;
  if (out === undefined || positionals.length > 2) {
    console.error('usage: node bench/make-model.mjs CONFIG OUT [--seed 0] [--outliers 7]');
    process.exit(2);
  }
  const started = performance.now();
  const made = makeModel(readConfig(config), out, { seed: Number(values.seed), outliers: Number(values.outliers) });
  const seconds = (performance.now() - started) / 1e3;
  const millions = (made.parameters / 1e6).toFixed(1);
  const rate = made.made
    ? `written in ${seconds.toFixed(1)} s (${(made.bytes / 1e6 / seconds).toFixed(0)} MB/s)`
    : 'was there already';
  console.log(
    `${out}: ${millions} M parameters, ${(made.bytes / 1e9).toFixed(2)} GB, ${made.outlierColumns} outlier features, ${rate}`,
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main();
