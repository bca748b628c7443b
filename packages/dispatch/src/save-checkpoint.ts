/**
 * `model.saveCheckpoint`: writes a loaded model as a Hugging Face folder, in float or in bitsandbytes' 8-bit layout
 * (`weight` int8, `SCB` float32, `weight_format`), which transformers loads and metashard loads back bit for bit. Every
 * device writes its own weights. The folder appears whole or not at all.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { copyFile, mkdir, open, rename, rm, rmdir, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import {
  ArgumentError,
  CheckpointError,
  type DeviceName,
  DTYPES,
  type DType,
  elementCount,
  encodeSafetensorsHeader,
  type Program,
  type ProgramTensor,
  parseBytes,
  type TensorId,
} from '@metashard/core';
import { findTiedParameters, findTransposedParameters, Linear8bitLt, type Module, scaleName } from '@metashard/meta';
import type { SaveInstruction } from './executor-protocol.js';
import type { Executors } from './executors.js';
import type { ModelSource } from './model-source.js';
import type { PlannedProgram } from './plan-program.js';

export interface SaveOptions {
  /** Largest file, bytes or words. Default "5GB". */
  maxShardSize?: string | number;
}

/** Files that describe the model and are copied as they are. */
const COPIED = [
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'vocab.json',
  'merges.txt',
];

interface SavedTensor {
  name: string;
  dtype: DType;
  shape: readonly number[];
  nbytes: number;
  /** Weight it is written from; null: the weight_format constant. */
  weight: TensorId | null;
  /** `shape` is the weight's with its dimensions swapped. */
  transposed?: true;
  /** An 8-bit table written in `dtype`: its scales. */
  dequantize?: TensorId;
}

/** The folder's parent must exist. Throws ArgumentError (the folder is not empty), CheckpointError (the disk). */
export async function saveModel(
  folder: string,
  source: ModelSource,
  planned: PlannedProgram,
  program: Program,
  executors: Executors,
  { maxShardSize = '5GB' }: SaveOptions,
): Promise<void> {
  const target = resolve(folder);
  if (existsSync(target) && readdirSync(target).length > 0) {
    throw new ArgumentError(`saveCheckpoint: expected a new or empty folder, got ${target}`);
  }
  const temporary = join(dirname(target), `.${basename(target)}.${process.pid}-${randomBytes(6).toString('hex')}.tmp`);
  try {
    await mkdir(temporary);
    const shards = cutShards(savedTensors(program, source), parseBytes(maxShardSize, 'maxShardSize'));
    await writeShards(temporary, shards, planned, executors);
    await describeModel(temporary, source, program);
    if (existsSync(target)) await rmdir(target);
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    if (error instanceof Error && 'syscall' in error)
      throw new CheckpointError(`${target}: ${error.message}`, { cause: error, details: { file: target } });
    throw error;
  }
}

/**
 * Every weight once, under its first name; 8-bit ones with their format. Wide dtypes first, so that each starts at a
 * multiple of its element.
 */
function savedTensors(program: Program, source: ModelSource): SavedTensor[] {
  const transposed = findTransposedParameters(source.model);
  const heads = tiedInt8Heads(source.model);
  const ids = new Map(program.tensors.map(({ name }, id) => [name, id]));
  const saved: SavedTensor[] = [];
  for (const [weight, { kind, dtype, dims, layout, name = '' }] of program.tensors.entries()) {
    if (kind !== 'weight') continue;
    const shape = dims as readonly number[];
    const nbytes = elementCount(shape) * DTYPES[dtype].bytes;
    const head = heads.get(name);
    if (transposed.has(name) && DTYPES[dtype].isFloat) {
      saved.push({ name, dtype, shape: shape.toReversed(), nbytes, weight, transposed: true });
    } else saved.push({ name: head ?? name, dtype, shape, nbytes, weight });
    if (layout !== 'packed_int8') continue;
    const format = scaleName(head ?? name).replace(/SCB$/, 'weight_format');
    saved.push({ name: format, dtype: 'uint8', shape: [], nbytes: 1, weight: null });
    if (head === undefined) continue;
    const float = floatDtype(source, program);
    const dequantize = ids.get(scaleName(name)) as TensorId;
    saved.push({ name, dtype: float, shape, nbytes: elementCount(shape) * DTYPES[float].bytes, weight, dequantize });
  }
  return saved.sort((a, b) => DTYPES[b.dtype].bytes - DTYPES[a.dtype].bytes || (a.name < b.name ? -1 : 1));
}

/**
 * Names of embeddings' weights and scales that an 8-bit head shares → the head's. Only linears have 8 bits in
 * bitsandbytes' layout: the table is saved as the head's, and in float beside it, untied, for those who read no other.
 */
function tiedInt8Heads(model: Module): Map<string, string> {
  const linears = new Set(model.namedModules().flatMap(([path, one]) => (one instanceof Linear8bitLt ? [path] : [])));
  const isLinear = (weight: string): boolean => linears.has(weight.replace(/\.weight$/, ''));
  const heads = new Map<string, string>();
  for (const group of findTiedParameters(model)) {
    const head = group.find(isLinear);
    if (head === undefined) continue;
    for (const name of group.filter((one) => !isLinear(one)))
      heads.set(name, head).set(scaleName(name), scaleName(head));
  }
  return heads;
}

/** The dtype of the model's weights that are not in 8 bits. */
function floatDtype(source: ModelSource, { tensors }: Program): DType {
  const isFloat = ({ kind, dtype, name }: ProgramTensor): boolean =>
    kind === 'weight' && DTYPES[dtype].isFloat && !/(^|\.)SCB$/.test(name ?? '');
  return tensors.find(isFloat)?.dtype ?? source.config.dtype;
}

function cutShards(tensors: readonly SavedTensor[], limit: number): SavedTensor[][] {
  const shards: SavedTensor[][] = [[]];
  let bytes = 0;
  for (const tensor of tensors) {
    if (bytes > 0 && bytes + tensor.nbytes > limit) {
      shards.push([]);
      bytes = 0;
    }
    shards.at(-1)?.push(tensor);
    bytes += tensor.nbytes;
  }
  return shards;
}

/** Headers and file sizes first, then every device writes its tensors in place, then everything is flushed. */
async function writeShards(
  folder: string,
  shards: readonly SavedTensor[][],
  planned: PlannedProgram,
  executors: Executors,
): Promise<void> {
  const names = shards.map((_, i) =>
    shards.length === 1
      ? 'model.safetensors'
      : `model-${String(i + 1).padStart(5, '0')}-of-${String(shards.length).padStart(5, '0')}.safetensors`,
  );
  const perDevice = new Map<DeviceName, SaveInstruction[]>();
  const owner = new Map<TensorId, DeviceName>();
  for (const [device, { weights, portions }] of planned.memory)
    for (const id of [...weights, ...portions.flatMap((portion) => portion.weights)])
      if (!owner.has(id)) owner.set(id, device);
  const weightMap: Record<string, string> = {};
  for (const [i, shard] of shards.entries()) {
    const file = join(folder, names[i] as string);
    const header = encodeSafetensorsHeader(shard, new Map([['format', 'pt']]));
    let offset = header.length;
    for (const { name, dtype, nbytes, weight, transposed, dequantize: scales } of shard) {
      weightMap[name] = names[i] as string;
      const device = weight === null ? undefined : owner.get(weight);
      if (weight !== null && device !== undefined)
        perDevice.set(device, [
          ...(perDevice.get(device) ?? []),
          {
            tensor: weight,
            file,
            offset,
            ...(transposed && { transposed }),
            ...(scales !== undefined && { dequantize: { scales, dtype } }),
          },
        ]);
      offset += nbytes;
    }
    // What no device writes, the format bytes, is 0 already.
    await writeFile(file, header);
    const handle = await open(file, 'r+');
    await handle.truncate(offset);
    await handle.close();
  }
  await executors.save(perDevice);
  for (const name of names) await flush(join(folder, name));
  if (shards.length === 1) return;
  const total = shards.flat().reduce((sum, { nbytes }) => sum + nbytes, 0);
  await writeJson(join(folder, 'model.safetensors.index.json'), {
    metadata: { total_size: total },
    weight_map: weightMap,
  });
}

async function describeModel(folder: string, source: ModelSource, program: Program): Promise<void> {
  const { quantization_config: _, torch_dtype: __, ...config } = source.config.raw;
  const weights = program.tensors.filter((tensor) => tensor.kind === 'weight');
  const int8Layers = source.model.namedModules().filter(([, module]) => module instanceof Linear8bitLt);
  const threshold = int8Threshold(int8Layers, weights);
  const isTied = tiedInt8Heads(source.model).size > 0;
  const { activations, outliers } = (int8Layers[0]?.[1] as Linear8bitLt | undefined) ?? {};
  const head = int8Layers.some(([path]) => /(^|\.)lm_head$/.test(path)) ? [] : ['lm_head'];
  const quantization =
    threshold === null
      ? {}
      : {
          quantization_config: {
            quant_method: 'bitsandbytes',
            load_in_8bit: true,
            load_in_4bit: false,
            llm_int8_threshold: threshold,
            // The full list: transformers' list replaces its default.
            llm_int8_skip_modules: [...new Set([...head, ...source.skipped.map(({ module }) => module)])],
            llm_int8_has_fp16_weight: false,
            llm_int8_enable_fp32_cpu_offload: false,
            // Ours; transformers passes over them.
            ...(isTied && { llm_int8_head: 'tied' }),
            ...(activations !== 'int8' && { int8_activations: activations }),
            ...(outliers !== 'per-batch' && { outliers }),
          },
        };
  await writeJson(join(folder, 'config.json'), {
    ...config,
    dtype: floatDtype(source, program),
    ...(isTied && { tie_word_embeddings: false }),
    ...quantization,
  });
  for (const name of COPIED) {
    const file = join(source.folder, name);
    if (existsSync(file)) await copyFile(file, join(folder, name));
  }
}

/** The outlier threshold of the 8-bit linears; null when there are none. */
function int8Threshold(layers: readonly [string, Module][], weights: readonly ProgramTensor[]): number | null {
  if (!weights.some((tensor) => tensor.dtype === 'int8')) return null;
  return layers.map(([, layer]) => (layer as Linear8bitLt).threshold)[0] ?? 0;
}

async function writeJson(file: string, value: unknown): Promise<void> {
  // Python reads the threshold 6 as an integer and refuses it; JavaScript writes 6.0 as 6.
  const text = JSON.stringify(value, null, 2).replace(/("llm_int8_threshold": \d+)(,?)$/m, '$1.0$2');
  await writeFile(file, `${text}\n`);
  await flush(file);
}

async function flush(file: string): Promise<void> {
  const handle = await open(file, 'r+');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
