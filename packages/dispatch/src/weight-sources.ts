/**
 * Finds every weight of a Program in a checkpoint and says how it is brought into place. Names are the module paths; a checkpoint may have the base model's
 * prefix (`transformer.`) or lack it, may name a tied weight by any of its names, and may hold linears in 8 bits. Reads headers only.
 */
import {
  CheckpointError,
  type CheckpointIndex,
  DTYPES,
  type DType,
  type Program,
  type ProgramTensor,
  sameDims,
  type TensorId,
} from '@metashard/core';
import type { FileSource, LoadInstruction } from './executor-protocol.js';

export interface WeightSourcesRequest {
  program: Program;
  checkpoint: CheckpointIndex;
  /** "transformer", "model": the part of names that a base model's own checkpoint lacks. */
  baseModelPrefix: string;
  /** Groups of names of one shared parameter. */
  tied: readonly (readonly string[])[];
  /** Names of weights that float checkpoints hold with their dimensions swapped (`findTransposedParameters`). */
  transposed?: ReadonlySet<string>;
  /** Tensors a checkpoint may hold that the model computes itself. */
  ignore?: readonly RegExp[];
  /** Default true: tensors that are missing, unexpected or of another shape are an error. */
  strict?: boolean;
  /** Hears what was wrong where `strict` is false. */
  warn?: (message: string) => void;
}

/**
 * One instruction per weight (CB and SCB together), and what it places. Throws CheckpointError listing what is missing,
 * unexpected or of another shape; where `strict` is false, weights without a source are zero.
 */
export function findWeightSources(request: WeightSourcesRequest): Map<TensorId, LoadInstruction> {
  const finder = new SourceFinder(request);
  const { program } = request;
  const byName = new Map<string, TensorId>();
  for (const [id, tensor] of program.tensors.entries()) if (tensor.kind === 'weight') byName.set(tensor.name ?? '', id);
  const found = new Map<TensorId, LoadInstruction>();
  for (const [name, id] of byName) {
    const tensor = program.tensors[id] as ProgramTensor;
    if (isScale(name, byName)) continue;
    const scales = byName.get(scaleName(name));
    const instruction =
      tensor.dtype === 'int8' && scales !== undefined ? finder.int8(name, id, scales) : finder.float(name, id);
    const zero: LoadInstruction = { kind: 'zero', tensor: id, ...(scales === undefined ? {} : { SCB: scales }) };
    found.set(id, instruction ?? zero);
  }
  finder.check();
  return found;
}

const scaleName = (weight: string): string => weight.replace(/(^|\.)weight$/, '$1SCB');

function isScale(name: string, byName: ReadonlyMap<string, TensorId>): boolean {
  return /(^|\.)SCB$/.test(name) && byName.has(name.replace(/(^|\.)SCB$/, '$1weight'));
}

/** Checkpoint tensors that carry no weight of their own: formats of 8-bit linears, masks and frequencies that old checkpoints saved. */
const NEVER_WEIGHTS = [/(^|\.)weight_format$/, /(^|\.)rotary_emb\.inv_freq$/, /(^|\.)attn\.(masked_bias|bias)$/];

class SourceFinder {
  readonly #request: WeightSourcesRequest;
  readonly #used = new Set<string>();
  readonly #missing: string[] = [];
  readonly #mismatched: string[] = [];

  constructor(request: WeightSourcesRequest) {
    this.#request = request;
  }

  float(name: string, id: TensorId): LoadInstruction | undefined {
    const key = this.#find(name, id);
    if (key === undefined) return undefined;
    const source = this.#source(key, name);
    if (source.dtype !== 'int8') return { kind: 'convert', tensor: id, source };
    const scales = this.#scales(key, source);
    return { kind: 'dequantize', tensor: id, source, scales };
  }

  int8(name: string, CB: TensorId, SCB: TensorId): LoadInstruction | undefined {
    // A table that a head shares may be there under the head's name in 8 bits and in float under its own.
    const key = this.#find(name, CB, (one) => this.#request.checkpoint.tensors.has(scaleName(one)));
    if (key === undefined) return undefined;
    const source = this.#source(key, name);
    if (source.dtype !== 'int8') return { kind: 'quantize', CB, SCB, source };
    return { kind: 'int8', CB, SCB, source, scales: this.#scales(key, source) };
  }

  /** Throws, or warns, when anything was missing, of another shape, or left over. */
  check(): void {
    const { checkpoint, ignore = [], strict = true, warn } = this.#request;
    const patterns = [...NEVER_WEIGHTS, ...ignore];
    const unexpected = [...checkpoint.tensors.keys()].filter(
      (key) => !this.#used.has(key) && !patterns.some((pattern) => pattern.test(key)),
    );
    const parts = [
      describe('missing', this.#missing),
      describe('unexpected', unexpected),
      describe('of another shape', this.#mismatched),
    ].filter((part) => part !== '');
    if (parts.length === 0) return;
    const message = `${checkpoint.folder}: tensors ${parts.join('; ')}`;
    if (!strict) {
      warn?.(`${message}; what has no tensor of its shape is zero`);
      return;
    }
    throw new CheckpointError(message, {
      code: 'checkpoint_mismatch',
      hint: 'check that config.json belongs to these weights, or load with strict: false',
      details: { missing: this.#missing, unexpected, mismatched: this.#mismatched },
    });
  }

  /** The checkpoint's key of a weight: its name, a tied name, or either with or without the base model's prefix. Checks the shape. */
  #find(name: string, id: TensorId, isPreferred: (key: string) => boolean = () => true): string | undefined {
    const { checkpoint, tied, baseModelPrefix: prefix, program } = this.#request;
    const names = tied.find((group) => group.includes(name)) ?? [name];
    const spellings = [name, ...names].flatMap((one) => [
      one,
      one.startsWith(`${prefix}.`) ? one.slice(prefix.length + 1) : `${prefix}.${one}`,
    ]);
    const keys = spellings.filter((one) => checkpoint.tensors.has(one));
    for (const key of keys) {
      this.#used.add(key);
      if (checkpoint.tensors.get(key)?.dtype === 'int8') this.#used.add(scaleName(key));
    }
    const key = keys.find(isPreferred) ?? keys[0];
    if (key === undefined) {
      this.#missing.push(name);
      return undefined;
    }
    const { dims } = program.tensors[id] as ProgramTensor;
    const want = this.#isTransposed(key, name) ? dims.toReversed() : dims;
    const got = checkpoint.tensors.get(key)?.shape ?? [];
    if (!sameDims(want, got)) {
      this.#mismatched.push(`${key} (expected [${want.join(', ')}], got [${got.join(', ')}])`);
      return undefined;
    }
    return key;
  }

  /** Whether the checkpoint holds a weight with its dimensions swapped: a float one may be. */
  #isTransposed(key: string, name: string): boolean {
    const { checkpoint, transposed } = this.#request;
    return transposed?.has(name) === true && checkpoint.tensors.get(key)?.dtype !== 'int8';
  }

  #scales(key: string, source: FileSource): FileSource {
    const { checkpoint } = this.#request;
    const name = scaleName(key);
    this.#used.add(name);
    if (!checkpoint.tensors.has(name)) {
      throw new CheckpointError(`${source.file} ${key}: an int8 weight: expected its scales ${name}, got none`, {
        hint: 'save the model with bitsandbytes 0.39 or later',
        details: { file: source.file, tensor: key },
      });
    }
    const scales = this.#source(name);
    const rows = source.shape[0];
    if (scales.dtype !== 'float32' || scales.shape.length !== 1 || scales.shape[0] !== rows) {
      throw new CheckpointError(
        `${scales.file} ${name}: expected float32 [${rows}], got ${scales.dtype} [${scales.shape.join(', ')}]`,
        {
          details: { file: scales.file, tensor: name },
        },
      );
    }
    return scales;
  }

  /** `name`: the weight it is for. */
  #source(key: string, name = ''): FileSource {
    const { checkpoint } = this.#request;
    const entry = checkpoint.tensors.get(key);
    const file = entry === undefined ? undefined : checkpoint.files[entry.file];
    if (entry === undefined || file === undefined)
      throw new CheckpointError(`${checkpoint.folder} ${key}: no such tensor`);
    const dtype = entry.dtype as DType | null;
    if (dtype === null || !(DTYPES[dtype].isFloat || dtype === 'int8')) {
      throw new CheckpointError(
        `${file.path} ${key}: expected a float or int8 weight, got ${dtype ?? 'a dtype metashard does not read'}`,
        {
          details: { file: file.path, tensor: key },
        },
      );
    }
    if (entry.strides !== undefined) {
      throw new CheckpointError(
        `${file.path} ${key}: expected elements row by row, got strides [${entry.strides.join(', ')}]`,
        { hint: 'save the tensor with .contiguous()', details: { file: file.path, tensor: key } },
      );
    }
    const source = { file: file.path, offset: entry.offset, dtype, shape: entry.shape };
    return this.#isTransposed(key, name) ? { ...source, transposed: true } : source;
  }
}

function describe(what: string, names: readonly string[]): string {
  if (names.length === 0) return '';
  const shown = names.slice(0, 4).join(', ');
  return `${what}: ${shown}${names.length > 4 ? ` and ${names.length - 4} more` : ''}`;
}

/** The instructions of one device in the order of the files, so that reading streams. */
export function instructionsFor(
  weights: Iterable<TensorId>,
  sources: ReadonlyMap<TensorId, LoadInstruction>,
): LoadInstruction[] {
  const own = [...weights].flatMap((id) => sources.get(id) ?? []);
  const key = (one: LoadInstruction): [string, number] => {
    if (one.kind === 'zero') return ['', 0];
    if (one.kind === 'memory') return ['', one.byteOffset];
    return one.kind === 'stored' ? [one.file, one.offset] : [one.source.file, one.source.offset];
  };
  return own.sort((a, b) => {
    const [[fileA, offsetA], [fileB, offsetB]] = [key(a), key(b)];
    return fileA < fileB ? -1 : fileA > fileB ? 1 : offsetA - offsetB;
  });
}
