/**
 * The meta backend: ops on meta tensors compute nothing but the specs of their outputs, and while `record` runs they
 * are written down as a Program. One recording at a time; no device is touched.
 */
import {
  ArgumentError,
  type Dim,
  type DType,
  dtypeBytes,
  formatDims,
  type Layout,
  type OpBackend,
  type OpName,
  type Program,
  type ProgramOp,
  type ProgramTensor,
  registerOpBackend,
  StateError,
  type Tensor,
  type TensorId,
  type TensorSpec,
} from '@metashard/core';
import { ConstantTensor } from './constant-tensor.js';
import { metaTensor } from './meta-tensor.js';
import type { Module } from './module.js';

/** Largest constant a program carries, bytes. */
const MAX_CONSTANT_BYTES = 2 ** 20;

/** What a recorded function may ask for beside its inputs. */
export interface Recording {
  /** State that lives between steps, by name; the same tensor for the same name. */
  cache(name: string, dims: readonly Dim[], dtype: DType): Tensor;
  /** Makes a tensor an output of the program. */
  tap(name: string, tensor: Tensor): void;
  /** Path of a module of the recorded tree, "" for its root. Throws ArgumentError for a stranger. */
  pathOf(module: Module): string;
}

type NamedTensors = Record<string, Tensor>;

class Recorder implements Recording {
  readonly #tensors: ProgramTensor[] = [];
  readonly #ops: ProgramOp[] = [];
  readonly #outputs: Record<string, TensorId> = {};
  readonly #ids = new Map<Tensor, TensorId>();
  readonly #weights = new Map<Tensor, string>();
  readonly #caches = new Map<string, Tensor>();
  readonly #paths = new Map<Module, string>();
  readonly #path: string[] = [];

  constructor(module: Module) {
    for (const [path, child] of module.namedModules()) this.#paths.set(child, path);
    for (const [name, parameter] of module.namedParameters()) {
      for (const [weight, tensor] of parameter.weightTensors(name)) this.#weights.set(tensor, weight);
    }
    for (const [name, buffer] of module.namedBuffers({ persistentOnly: true })) this.#weights.set(buffer, name);
  }

  input(name: string, { dims, dtype }: TensorSpec): Tensor {
    const tensor = metaTensor(dims, dtype);
    this.#add(tensor, { kind: 'input', dims, dtype, layout: 'strided', name });
    return tensor;
  }

  cache(name: string, dims: readonly Dim[], dtype: DType): Tensor {
    let tensor = this.#caches.get(name);
    if (tensor === undefined) {
      tensor = metaTensor(dims, dtype);
      this.#caches.set(name, tensor);
      this.#add(tensor, { kind: 'cache', dims, dtype, layout: 'strided', name });
    }
    return tensor;
  }

  tap(name: string, tensor: Tensor): void {
    this.#outputs[name] = this.#idOf(tensor);
  }

  pathOf(module: Module): string {
    const path = this.#paths.get(module);
    if (path === undefined) throw new ArgumentError('record: expected a module of the recorded tree, got another one');
    return path;
  }

  /** Writes an op down; its outputs are new activations. */
  append(
    op: OpName,
    inputs: readonly (Tensor | null)[],
    attributes: readonly number[],
    outputs: readonly Tensor[],
  ): void {
    const ins = inputs.map((tensor) => (tensor === null ? -1 : this.#idOf(tensor)));
    const outs = outputs.map((tensor) => this.#add(tensor, { kind: 'activation', ...specOf(tensor) }));
    this.#ops.push({ op, inputs: ins, outputs: outs, attributes: [...attributes], module: this.#path.at(-1) ?? '' });
  }

  #add(tensor: Tensor, entry: ProgramTensor): TensorId {
    const id = this.#tensors.push(entry) - 1;
    this.#ids.set(tensor, id);
    return id;
  }

  #idOf(tensor: Tensor): TensorId {
    return this.#ids.get(tensor) ?? this.#meet(tensor);
  }

  /** A tensor seen for the first time: a weight, a view of something known, or a real tensor (a constant). */
  #meet(tensor: Tensor): TensorId {
    const name = this.#weights.get(tensor);
    if (name !== undefined) return this.#add(tensor, { kind: 'weight', ...specOf(tensor), name });
    const { base } = tensor;
    if (base !== tensor && (base.isMeta || this.#weights.has(base))) {
      const of = this.#idOf(base);
      const offset = tensor.offset - base.offset;
      return this.#add(tensor, { kind: 'view', ...specOf(tensor), of, offset, strides: [...tensor.strides] });
    }
    if (!tensor.isMeta) return this.#add(tensor, constantOf(tensor));
    throw new StateError(
      `record: expected inputs, weights and results of the recorded module, got a tensor ${formatDims(tensor.dims)} on meta`,
      { hint: 'register it as a parameter or buffer, or give it to record as an input' },
    );
  }

  /** Runs `fn` while each module's forward notes its path. */
  withPaths<T>(fn: () => T): T {
    const wrapped = [...this.#paths];
    for (const [module, path] of wrapped) this.#wrap(module, path);
    try {
      return fn();
    } finally {
      for (const [module] of wrapped) Reflect.deleteProperty(module, 'forward');
    }
  }
  #wrap(module: Module, path: string): void {
    if (Object.hasOwn(module, 'forward')) {
      throw new StateError(`record: expected ${path || 'the root'} to have its class's forward, got one of its own`);
    }
    const forward = module.forward;
    const wrapper = (...inputs: never[]): unknown => {
      this.#path.push(path);
      try {
        return forward.apply(module, inputs);
      } finally {
        this.#path.pop();
      }
    };
    Object.defineProperty(module, 'forward', { value: wrapper, configurable: true, enumerable: false });
  }

  program(): Program {
    return { version: 1, tensors: this.#tensors, ops: this.#ops, outputs: this.#outputs };
  }
}

const specOf = ({ dims, dtype, layout }: Tensor): { dims: readonly Dim[]; dtype: DType; layout: Layout } => ({
  dims: [...dims],
  dtype,
  layout,
});

/** The values of a small real tensor, row-major. */
function constantOf(tensor: Tensor): ProgramTensor {
  if (dtypeBytes(tensor.dtype, tensor.numel) > MAX_CONSTANT_BYTES) {
    throw new StateError(`record: expected constants up to 1 MiB, got ${formatDims(tensor.dims)} ${tensor.dtype}`, {
      hint: 'register it as a persistent buffer, then it is loaded as a weight',
    });
  }
  const values = tensor instanceof ConstantTensor ? tensor.values : tensor.contiguous().toFloat32Array();
  return { kind: 'constant', dims: tensor.shape, dtype: tensor.dtype, layout: 'strided', data: Array.from(values) };
}

let active: Recorder | null = null;

const metaBackend: OpBackend = {
  run(op, inputs, attributes, outputs) {
    const results = outputs.map(({ dims, dtype, layout = 'strided' }) => metaTensor(dims, dtype, layout));
    active?.append(op, inputs, attributes, results);
    return results;
  },
};
registerOpBackend('meta', metaBackend);

/**
 * Runs `run` once with a meta tensor per input (`inputs`: name → dims, which may be symbols, and dtype) and gives what
 * it did as a Program; the tensors it returns become outputs by name. Weights are `module`'s parameters and persistent
 * buffers, by path; real tensors become constants. Throws StateError (a tensor of nowhere, a constant above 1 MiB, a
 * recording within a recording) and what the ops throw.
 */
export function record(
  module: Module,
  inputs: Readonly<Record<string, TensorSpec>>,
  run: (inputs: NamedTensors, recording: Recording) => NamedTensors,
): Program {
  if (active !== null) throw new StateError('record: expected no recording in progress, got a second one');
  const recorder = new Recorder(module);
  const named = Object.fromEntries(Object.entries(inputs).map(([name, spec]) => [name, recorder.input(name, spec)]));
  active = recorder;
  try {
    const outputs = recorder.withPaths(() => run(named, recorder));
    for (const [name, tensor] of Object.entries(outputs)) recorder.tap(name, tensor);
  } finally {
    active = null;
  }
  return recorder.program();
}
