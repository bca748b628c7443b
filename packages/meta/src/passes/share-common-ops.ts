/**
 * Computes identical things once (common subexpressions): q, k and v quantize the same activations, layers use the same
 * rotary table. Ops are pure but `attention`, which writes the cache.
 */
import type { Program, ProgramOp, ProgramTensor, TensorId } from '@metashard/core';

/**
 * The program without repeated ops and views, and without tensors that nothing uses any more (inputs stay). The first
 * of equals remains, with its module.
 */
export function shareCommonOps(program: Program): Program {
  const canonical = new CanonicalTensors(program.tensors);
  const seen = new Map<string, ProgramOp>();
  const ops: ProgramOp[] = [];
  for (const { op, inputs, outputs, attributes, module } of program.ops) {
    const shared = { op, inputs: inputs.map((id) => canonical.of(id)), outputs, attributes, module };
    const key = keyOf(shared, program.tensors);
    const first = op === 'attention' ? undefined : seen.get(key);
    if (first === undefined) {
      seen.set(key, shared);
      ops.push(shared);
    } else {
      for (const [i, id] of outputs.entries()) canonical.merge(id, first.outputs[i] as TensorId);
    }
  }
  return compact(program, ops, canonical);
}

/**
 * Which tensor stands for which. A view may be asked for once the op that makes its base was seen; going in order
 * ensures that.
 */
class CanonicalTensors {
  readonly #tensors: readonly ProgramTensor[];
  /** -1: not known yet. */
  readonly #same: Int32Array;
  readonly #views = new Map<string, TensorId>();

  constructor(tensors: readonly ProgramTensor[]) {
    this.#tensors = tensors;
    this.#same = new Int32Array(tensors.length).fill(-1);
  }

  of(id: TensorId): TensorId {
    if (id < 0) return id;
    const known = this.#same[id] as number;
    if (known >= 0) return known;
    const tensor = this.#tensors[id] as ProgramTensor;
    if (tensor.of === undefined) return id;
    const key = `${this.of(tensor.of)}|${tensor.offset}|${tensor.dims}|${tensor.strides}`;
    const first = this.#views.get(key) ?? id;
    this.#views.set(key, first);
    this.merge(id, first);
    return first;
  }

  merge(id: TensorId, into: TensorId): void {
    this.#same[id] = into;
  }
}

/** Equal for ops that compute the same; casts differ by what their output is. */
function keyOf({ op, inputs, attributes, outputs }: ProgramOp, tensors: readonly ProgramTensor[]): string {
  const made = tensors[outputs[0] as TensorId];
  return `${op}|${inputs}|${attributes}|${made?.dtype}|${made?.layout}`;
}

/** The tensors in use, numbered anew, and ops and outputs that name them so. */
function compact({ tensors, outputs }: Program, ops: readonly ProgramOp[], canonical: CanonicalTensors): Program {
  const used = new Uint8Array(tensors.length);
  const use = (id: TensorId): void => {
    if (id < 0) return;
    used[id] = 1;
    const of = tensors[id]?.of;
    if (of !== undefined) used[canonical.of(of)] = 1;
  };
  for (const op of ops) {
    op.inputs.forEach(use);
    op.outputs.forEach(use);
  }
  for (const id of Object.values(outputs)) use(canonical.of(id));

  const kept: ProgramTensor[] = [];
  const renumbered = new Int32Array(tensors.length);
  const at = (id: TensorId): TensorId => (id < 0 ? id : (renumbered[canonical.of(id)] as TensorId));
  for (const [id, tensor] of tensors.entries()) {
    if (used[id] === 0 && tensor.kind !== 'input') continue;
    // A base always comes before its views.
    renumbered[id] = kept.push(tensor.of === undefined ? tensor : { ...tensor, of: at(tensor.of) }) - 1;
  }
  return {
    version: 1,
    tensors: kept,
    ops: ops.map(({ op, inputs, outputs: made, attributes, module }) => {
      return { op, inputs: inputs.map(at), outputs: made.map(at), attributes, module };
    }),
    outputs: Object.fromEntries(Object.entries(outputs).map(([name, id]) => [name, at(id)])),
  };
}
