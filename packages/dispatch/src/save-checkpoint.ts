/**
 * `model.saveCheckpoint`: writes a loaded model as a Hugging Face folder, in float or in bitsandbytes' 8-bit layout (`weight` int8, `SCB` float32,
 * `weight_format`), which transformers loads and metashard loads back bit for bit. Every device writes its own weights. The folder appears whole or not at all.
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
  encodeSafetensorsHeader,
  type Program,
  type ProgramTensor,
  parseBytes,
  type TensorId,
} from '@metashard/core';
import { findTransposedParameters, Linear8bitLt, type Module, scaleName } from '@metashard/meta';
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
    const shards = cutShards(
      savedTensors(program, findTransposedParameters(source.model)),
      parseBytes(maxShardSize, 'maxShardSize'),
    );
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

/** Every weight once, under its first name; 8-bit ones with their format. Wide dtypes first, so that each starts at a multiple of its element. */
function savedTensors(program: Program, transposed: ReadonlySet<string>): SavedTensor[] {
  const saved: SavedTensor[] = [];
  for (const [weight, tensor] of program.tensors.entries()) {
    if (tensor.kind !== 'weight') continue;
    const shape = tensor.dims as readonly number[];
    const nbytes = shape.reduce((product, dim) => product * dim, DTYPES[tensor.dtype].bytes);
    const name = tensor.name as string;
    const { dtype } = tensor;
    if (transposed.has(name) && DTYPES[dtype].isFloat) {
      saved.push({ name, dtype, shape: shape.toReversed(), nbytes, weight, transposed: true });
    } else saved.push({ name, dtype, shape, nbytes, weight });
    if (tensor.layout === 'packed_int8')
      saved.push({
        name: scaleName(name).replace(/SCB$/, 'weight_format'),
        dtype: 'uint8',
        shape: [],
        nbytes: 1,
        weight: null,
      });
  }
  return saved.sort((a, b) => DTYPES[b.dtype].bytes - DTYPES[a.dtype].bytes || (a.name < b.name ? -1 : 1));
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
    for (const { name, nbytes, weight, transposed } of shard) {
      weightMap[name] = names[i] as string;
      const device = weight === null ? undefined : owner.get(weight);
      if (weight !== null && device !== undefined)
        perDevice.set(device, [
          ...(perDevice.get(device) ?? []),
          { tensor: weight, file, offset, ...(transposed && { transposed }) },
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
  const float = weights.find((tensor) => DTYPES[tensor.dtype].isFloat && !/(^|\.)SCB$/.test(tensor.name ?? ''));
  const int8Layers = source.model.namedModules().filter(([, module]) => module instanceof Linear8bitLt);
  const threshold = int8Threshold(int8Layers, weights);
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
          },
        };
  await writeJson(join(folder, 'config.json'), {
    ...config,
    dtype: float?.dtype ?? source.config.dtype,
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
