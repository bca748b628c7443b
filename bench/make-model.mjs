/**
 * Writes a checkpoint of random float16 weights for a config: real safetensors (sharded above 2 GB) and a config.json, no tokenizer. Matrices are
 * N(0, 0.02), biases 0. In every block's norms a few columns are large: the activations behind them pass LLM.int8()'s threshold of 6, as the outlier
 * features of trained models do (Dettmers et al. 2022, section 4). Names and shapes come from the module tree.
 *
 *   node bench/make-model.mjs CONFIG OUT [--seed 0] [--outliers 7]
 *
 * CONFIG: bloom-560m, bloom-1b7, llama-1b1 or the path of a config.json. --outliers counts features per 4096 of the norm's width.
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

const WEIGHT_STD = 0.02;
/**
 * A block's norms: their planted columns, where |12 x| passes 6 in 62 % of the rows, and all others. With 1 for the others, products of two activations
 * (Llama's gated MLP) would pass the threshold in 16 % of the columns of a prompt of 512 tokens, which no trained model does; with 0.5 it is 0.2 %.
 */
const PLANTED_WEIGHT = 12;
const NORM_WEIGHT = 0.5;
const SHARD_BYTES = 2e9;
/** Values of the table that all matrices are cut from, and of the longest piece taken at once. */
const TABLE_VALUES = 2 ** 22;
const PIECE_VALUES = 2 ** 19;

/**
 * Writes the checkpoint folder `out`; nothing is done where a complete one from the same arguments lies there already.
 * Returns { folder, bytes, parameters, outlierColumns } (columns per norm) and `made`, whether it was written now.
 */
export function makeModel(config, out, { seed = 0, outliers = 7 } = {}) {
  const raw = { ...config, torch_dtype: 'float16' };
  const tensors = describeTensors(raw, outliers);
  const recipe = JSON.stringify({ version: 3, seed, outliers, raw });
  const facts = {
    folder: out,
    bytes: tensors.reduce((sum, { nbytes }) => sum + nbytes, 0),
    parameters: tensors.reduce((sum, { nbytes }) => sum + nbytes / 2, 0),
    outlierColumns: Math.max(0, ...tensors.map(({ planted = 0 }) => planted)),
  };
  const stamp = join(out, 'recipe.json');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === recipe) return { ...facts, made: false };
  mkdirSync(out, { recursive: true });
  writeShards(out, tensors, seed);
  writeFileSync(join(out, 'config.json'), `${JSON.stringify(raw, null, 2)}\n`);
  writeFileSync(stamp, recipe);
  return { ...facts, made: true };
}

const plantedColumns = (width, outliers) => Math.max(outliers > 0 ? 1 : 0, Math.round((outliers * width) / 4096));

/** Name, shape and bytes of every parameter, a tied one once; `fill` is its one value, null for random ones. */
function describeTensors(raw, outliers) {
  const { model, architecture } = buildModel(raw, { dtype: 'float16' });
  const tensors = [];
  const seen = new Set();
  for (const [path, module] of model.namedModules()) {
    const isNorm = module instanceof nn.LayerNorm || module instanceof nn.RMSNorm;
    for (const [name, parameter] of module.ownParameters()) {
      if (seen.has(parameter)) continue;
      seen.add(parameter);
      const { shape } = parameter;
      const inBlock = path.startsWith(`${architecture.blocksPath}.`);
      const fill = name === 'bias' ? 0 : !isNorm ? null : inBlock ? NORM_WEIGHT : 1;
      const planted = fill === NORM_WEIGHT ? plantedColumns(shape[0], outliers) : 0;
      tensors.push({ name: `${path}.${name}`, shape, nbytes: parameter.numel * 2, fill, planted });
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
    for (const tensor of tensors) writeTensor(file, tensor, table, random);
  } finally {
    closeSync(file);
  }
}

function writeTensor(file, { shape, fill, planted, nbytes }, table, random) {
  if (fill === null) return writeNormal(file, nbytes / 2, table, random);
  const values = new Uint16Array(shape[0]).fill(float32ToFloat16Bits(fill));
  const outlier = float32ToFloat16Bits(PLANTED_WEIGHT);
  for (const column of distinctColumns(shape[0], planted, random)) values[column] = outlier;
  writeSync(file, values);
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

function distinctColumns(width, count, random) {
  const columns = new Set();
  while (columns.size < count) columns.add(Math.floor(random() * width));
  return columns;
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
    `${out}: ${millions} M parameters, ${(made.bytes / 1e9).toFixed(2)} GB, ${made.outlierColumns} outlier columns a norm, ${rate}`,
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main();
