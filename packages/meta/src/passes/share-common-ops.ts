/**
 * Computes identical things once (common subexpressions): q, k and v quantize the same activations, layers use the same rotary table. Ops are pure
 * but `attention`, which writes the cache.
 */
import type { Program, ProgramOp, ProgramTensor, TensorId } from '@metashard/core';

/** The program without repeated ops and views, and without the tensors that nothing uses any more. The first of equals stays, with its module. */
export function shareCommonOps(program: Program): Program {
  const names = new CanonicalTensors(program.tensors);
  const seen = new Map<string, ProgramOp>();
  const ops: ProgramOp[] = [];
  for (const original of program.ops) {
    const op = { ...original, inputs: original.inputs.map((id) => names.of(id)) };
    const key = keyOf(op, program.tensors);
    const first = op.op === 'attention' ? undefined : seen.get(key);
    if (first === undefined) {
      seen.set(key, op);
      ops.push(op);
    } else {
      for (const [i, id] of op.outputs.entries()) names.merge(id, first.outputs[i] as TensorId);
    }
  }
  const outputs = Object.fromEntries(Object.entries(program.outputs).map(([name, id]) => [name, names.of(id)]));
  return compact(names.tensors(), ops, outputs);
}

/** Which tensor stands for which. A view may be asked for once the op that makes its base has been seen; ops in order ensure that. */
class CanonicalTensors {
  readonly #tensors: readonly ProgramTensor[];
  readonly #same = new Map<TensorId, TensorId>();
  readonly #views = new Map<string, TensorId>();

  constructor(tensors: readonly ProgramTensor[]) {
    this.#tensors = tensors;
  }

  of(id: TensorId): TensorId {
    const known = this.#same.get(id);
    if (known !== undefined || id < 0) return known ?? id;
    const { kind, of, offset, dims, strides, dtype } = this.#tensors[id] as ProgramTensor;
    if (kind !== 'view') return id;
    const key = [this.of(of as TensorId), offset, dims, strides, dtype].join('|');
    const first = this.#views.get(key) ?? id;
    this.#views.set(key, first);
    this.#same.set(id, first);
    return first;
  }

  merge(id: TensorId, into: TensorId): void {
    this.#same.set(id, into);
  }

  /** All tensors, views pointing at the bases that stayed. */
  tensors(): ProgramTensor[] {
    return this.#tensors.map((tensor) => (tensor.of === undefined ? tensor : { ...tensor, of: this.of(tensor.of) }));
  }
}

/** Equal for ops that compute the same; casts differ by what their output is. */
function keyOf({ op, inputs, attributes, outputs }: ProgramOp, tensors: readonly ProgramTensor[]): string {
  const made = outputs.map((id) => `${tensors[id]?.dtype}/${tensors[id]?.layout}`);
  return [op, inputs, attributes, made].join('|');
}

/** Drops tensors that no op, view or output uses (inputs stay) and numbers the rest anew. */
function compact(tensors: readonly ProgramTensor[], ops: readonly ProgramOp[], outputs: Program['outputs']): Program {
  const used = new Set<TensorId>(Object.values(outputs));
  for (const op of ops) for (const id of [...op.inputs, ...op.outputs]) used.add(id);
  for (const id of [...used]) {
    const of = tensors[id]?.of;
    if (of !== undefined) used.add(of);
  }
  const kept = [...tensors.entries()].filter(([id, { kind }]) => kind === 'input' || used.has(id));
  const renumbered = new Map<TensorId, TensorId>(kept.map(([id], index) => [id, index]));
  const at = (id: TensorId): TensorId => (id < 0 ? id : (renumbered.get(id) as TensorId));
  return {
    version: 1,
    tensors: kept.map(([, tensor]) => (tensor.of === undefined ? tensor : { ...tensor, of: at(tensor.of) })),
    ops: ops.map((op) => ({ ...op, inputs: op.inputs.map(at), outputs: op.outputs.map(at) })),
    outputs: Object.fromEntries(Object.entries(outputs).map(([name, id]) => [name, at(id)])),
  };
}
