/**
 * A model in one piece on the CPU, in float, with a ComparedLinear in the place of every linear that 8 bits would
 * replace: what a comparison runs. It computes eagerly and keeps no cache; `loadModel` is for using a model.
 */
import {
  CheckpointError,
  contextOf,
  ensureBackend,
  F,
  native,
  type ProgramTensor,
  parseDevice,
  type Tensor,
  type TensorId,
  tensor,
} from '@metashard/core';
import {
  eagerContext,
  findTiedParameters,
  Linear8bitLt,
  type nn,
  setModuleTensorToDevice,
  splitPath,
} from '@metashard/meta';
import { recordSource } from '../load-model.js';
import { WeightLoader } from '../load-weights.js';
import { type ModelSource, openModelSource } from '../model-source.js';
import type { LoadModelOptions } from '../options.js';
import { findWeightSources } from '../weight-sources.js';
import { ComparedLinear, MethodProducts } from './compared-linear.js';
import type { QuantMethod } from './quant-methods.js';
import { TensorArena } from './tensor-arena.js';

export type EagerModelOptions = Pick<LoadModelOptions, 'revision' | 'dtype' | 'llmInt8SkipModules' | 'threads'>;

export class EagerModel {
  readonly source: ModelSource;
  /** By path, in the order of the tree. */
  readonly linears: ReadonlyMap<string, ComparedLinear>;
  readonly #weights: TensorArena;
  readonly #quantized: TensorArena;
  readonly #step: TensorArena;

  /** Finds, builds and loads. Throws what `loadModel` throws for a folder that cannot be read. */
  static async open(nameOrFolder: string, options: EagerModelOptions = {}): Promise<EagerModel> {
    setThreads(options.threads);
    const source = await openModelSource(nameOrFolder, { ...options, loadIn8bit: false });
    const int8 = await openModelSource(nameOrFolder, { ...options, loadIn8bit: true });
    const weights = new TensorArena(contextOf(parseDevice('cpu')));
    try {
      loadFloatWeights(source, weights);
      return new EagerModel({ ...source, skipped: int8.skipped }, pathsOfInt8(int8), weights);
    } catch (error) {
      weights.dispose();
      throw error;
    }
  }

  private constructor(source: ModelSource, paths: readonly string[], weights: TensorArena) {
    const context = contextOf(parseDevice('cpu'));
    this.source = source;
    this.#weights = weights;
    this.#quantized = new TensorArena(context);
    this.#step = new TensorArena(context);
    this.linears = new Map(paths.map((path) => [path, replaceByCompared(source, path)]));
  }

  /** Quantizes the weights for a method; the last method's are gone. */
  use(method: QuantMethod): MethodProducts {
    this.#quantized.reset();
    const products = new MethodProducts(method, this.#quantized, this.#step);
    for (const compared of this.linears.values()) {
      compared.product = products.of(compared.linear.weight, compared.linear.bias);
    }
    return products;
  }

  /**
   * Logits [T, V] of all tokens of one sequence, for the time of `read`. Throws ArgumentError for ids outside the
   * vocabulary.
   */
  forward<T>(ids: readonly number[], read: (logits: Tensor) => T): T {
    const int32 = (values: readonly number[]): Tensor => tensor([...values], { dtype: 'int32' });
    const { model } = this.source;
    try {
      const context = eagerContext(model, [ids.length]);
      const inputs = { inputIds: int32(ids), outputRows: int32([...ids.keys()]) };
      return read(this.#step.run(() => F.contiguous(model.forward(inputs, context))));
    } finally {
      this.#step.reset();
    }
  }

  /** Frees everything. The model cannot be used any more. */
  dispose(): void {
    for (const arena of [this.#weights, this.#quantized, this.#step]) arena.dispose();
  }
}

function setThreads(threads: number | undefined): void {
  ensureBackend('cpu');
  if (threads !== undefined) native().configureBackend('cpu', 'threads', String(threads));
}

function pathsOfInt8({ model }: ModelSource): string[] {
  return model.namedModules('', { everyName: true }).flatMap(([path, module]) => {
    return module instanceof Linear8bitLt ? [path] : [];
  });
}

function replaceByCompared({ model }: ModelSource, path: string): ComparedLinear {
  const [parent, name] = splitPath(path);
  const compared = new ComparedLinear(model.getModule(path) as nn.Linear);
  model.getModule(parent).registerModule(name, compared);
  return compared;
}

/** Reads every weight of the model, whatever the checkpoint calls it, in its dtype; 8-bit ones are dequantized. */
function loadFloatWeights(source: ModelSource, arena: TensorArena): void {
  const { model, checkpoint, architecture, folder } = source;
  if (checkpoint === null) throw new CheckpointError(`${folder}: expected weights, got a config alone`);
  const { program } = recordSource(source, {});
  const sources = findWeightSources({
    program,
    checkpoint,
    baseModelPrefix: architecture.baseModelPrefix,
    tied: findTiedParameters(model),
    ignore: architecture.ignoredTensors,
  });
  const made = new Map<TensorId, Tensor>();
  for (const id of sources.keys()) {
    const { dims, dtype } = program.tensors[id] as ProgramTensor;
    made.set(id, arena.empty({ dims, dtype }));
  }
  const loader = new WeightLoader(contextOf(parseDevice('cpu')), program, (id) => placeOf(made.get(id) as Tensor));
  try {
    for (const instruction of sources.values()) loader.run(instruction);
  } finally {
    loader.close();
  }
  for (const [id, value] of made) {
    setModuleTensorToDevice(model, program.tensors[id]?.name as string, 'cpu', { value });
  }
}

function placeOf({ storage, offset, nbytes, numel }: Tensor): { buffer: number; byteOffset: number } {
  const elementBytes = numel === 0 ? 1 : nbytes / numel;
  return { buffer: storage?.buffer as number, byteOffset: offset * elementBytes };
}
