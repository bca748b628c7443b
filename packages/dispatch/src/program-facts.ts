/**
 * What planning asks of a Program over and over: the storage behind every view, the bytes of every tensor at the
 * largest step, the scratch of every op.
 * Computed once per Program and size of step and kept as long as the Program lives.
 */
import {
  type DimValues,
  opSignature,
  type Program,
  type ProgramTensor,
  resolveDims,
  roundUp,
  specBytes,
  type TensorId,
  type TensorSpec,
} from '@metashard/core';

/** Every tensor starts on a cache line; what the CPU backend aligns to. */
export const ALIGNMENT = 64;
/** What is mapped from a file starts at a multiple of it. */
export const PAGE_BYTES = 4096;

/** A tensor that no op under consideration makes. */
export const UNUSED = -1;

export class ProgramFacts {
  /** Storage tensor of each tensor. */
  readonly storage: Int32Array;
  /** Bytes of each tensor at `dims`, rounded up to the alignment; 0 for views. */
  readonly bytes: Float64Array;
  /** Scratch bytes of each op at `dims`. */
  readonly scratch: Float64Array;
  /**
   * Ops that need only step inputs and constants (rope tables): cheap, so every segment that uses their results
   * computes them itself. An op that makes an output is none: it is computed once, where the output is read from.
   */
  readonly rematerialized: ReadonlySet<number>;
  /** Op that makes each tensor, or -1. */
  readonly producer: Int32Array;
  /** Work space of `planArena`: UNUSED everywhere between its calls. */
  readonly lastUse: Int32Array;

  constructor(
    readonly program: Program,
    readonly dims: DimValues,
  ) {
    const { tensors, ops } = program;
    this.storage = Int32Array.from(tensors.keys(), (id) => storageOf(program, id));
    this.bytes = Float64Array.from(tensors, (tensor) => (tensor.kind === 'view' ? 0 : tensorBytes(tensor, dims)));
    this.scratch = Float64Array.from(ops, (op) => this.#scratchOf(op));
    this.producer = new Int32Array(tensors.length).fill(-1);
    for (const [index, op] of ops.entries()) for (const id of op.outputs) this.producer[id] = index;
    this.lastUse = new Int32Array(tensors.length).fill(UNUSED);
    this.rematerialized = this.#findRematerialized();
  }

  /** The facts of a Program at these sizes; the same object for the same arguments. */
  static of(program: Program, dims: DimValues): ProgramFacts {
    const key = `${dims.tokens},${dims.sequences},${dims.outputs}`;
    let bySize = known.get(program);
    if (bySize === undefined) {
      bySize = new Map();
      known.set(program, bySize);
    }
    let facts = bySize.get(key);
    if (facts === undefined) {
      facts = new ProgramFacts(program, dims);
      bySize.set(key, facts);
    }
    return facts;
  }

  /** Storage tensor of an op's input; -1 for an absent one. */
  storageOf(id: TensorId): TensorId {
    return id < 0 ? -1 : (this.storage[id] as number);
  }
  bytesOf(id: TensorId): number {
    return this.bytes[id] as number;
  }
  sum(ids: Iterable<TensorId>): number {
    let total = 0;
    for (const id of ids) total += this.bytes[id] as number;
    return total;
  }

  #scratchOf(op: Program['ops'][number]): number {
    const { scratch } = opSignature(op.op);
    if (scratch === undefined) return 0;
    const inputs = op.inputs.map((id): TensorSpec | null => {
      const tensor = this.program.tensors[id];
      return tensor === undefined ? null : { ...tensor, dims: resolveDims(tensor.dims, this.dims) };
    });
    return roundUp(scratch(inputs), ALIGNMENT);
  }

  #findRematerialized(): Set<number> {
    const { tensors, ops, outputs } = this.program;
    const wanted = new Set(Object.values(outputs).map((id) => this.storageOf(id)));
    const free = Uint8Array.from(tensors, (tensor) => (tensor.kind === 'input' || tensor.kind === 'constant' ? 1 : 0));
    const found = new Set<number>();
    for (const [index, op] of ops.entries()) {
      if (op.outputs.some((id) => wanted.has(id))) continue;
      if (!op.inputs.every((id) => id < 0 || free[this.storage[id] as number] === 1)) continue;
      found.add(index);
      for (const id of op.outputs) free[id] = 1;
    }
    return found;
  }
}

const known = new WeakMap<Program, Map<string, ProgramFacts>>();

/** The storage tensor behind a view, or the tensor itself. */
export function storageOf(program: Program, id: TensorId): TensorId {
  let at = id;
  for (let tensor = program.tensors[at]; tensor?.kind === 'view'; tensor = program.tensors[at])
    at = tensor.of as TensorId;
  return at;
}

/** Bytes of a tensor of the Program at the given sizes, rounded up to the alignment. */
export function tensorBytes(tensor: ProgramTensor, dims: DimValues): number {
  const spec = { dims: resolveDims(tensor.dims, dims), dtype: tensor.dtype, layout: tensor.layout };
  return roundUp(Math.max(specBytes(spec), 1), ALIGNMENT);
}
