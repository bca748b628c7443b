/**
 * Runs a recorded Program op by op with eager ops: slow and plain, so that what was recorded can be held against what
 * runs eagerly.
 */
import { callOp, empty, type Program, type ProgramTensor, resolveDims, Tensor, tensor } from '@metashard/core';
import type { Module } from '@metashard/meta';

export type NamedTensors = Readonly<Record<string, Tensor>>;

/**
 * The program's outputs for inputs by name, weights by name from a state dict, and caches of zeros unless given (they
 * are written).
 */
export function runProgram(program: Program, model: Module, inputs: NamedTensors, caches = new Map<string, Tensor>()) {
  const state = model.stateDict();
  const sizes = {
    tokens: inputs.input_ids?.shape[0] ?? 0,
    sequences: inputs.query_starts?.shape[0] ?? 0,
    outputs: inputs.output_rows?.shape[0] ?? 0,
  };
  const made: (Tensor | undefined)[] = [];
  const get = (id: number): Tensor | null => {
    if (id < 0) return null;
    const found = made[id] ?? source(program.tensors[id] as ProgramTensor);
    made[id] = found;
    return found;
  };
  const source = (entry: ProgramTensor): Tensor => {
    const { kind, name = '', dtype } = entry;
    const dims = resolveDims(entry.dims, sizes);
    if (kind === 'input') return inputs[name] as Tensor;
    if (kind === 'constant') return tensor([...(entry.data as number[])], { dtype, shape: dims });
    if (kind === 'cache') return cacheOf(caches, name, empty(dims, { dtype }));
    if (kind === 'view') {
      const base = get(entry.of as number) as Tensor;
      const [offset, strides] = [base.offset + (entry.offset as number), entry.strides as number[]];
      return new Tensor({ ...base.parts, dims, strides, offset, base });
    }
    const weight = state.get(name) as Tensor;
    return entry.layout === 'packed_int8' ? (callOp('pack_int8', [weight])[0] as Tensor) : weight;
  };
  for (const { op, inputs: ins, outputs, attributes } of program.ops) {
    const specs = outputs.map((id) => {
      const { dims, dtype, layout } = program.tensors[id] as ProgramTensor;
      return { dims: resolveDims(dims, sizes), dtype, layout };
    });
    const results = callOp(op, ins.map(get), attributes, specs);
    for (const [i, id] of outputs.entries()) made[id] = results[i] as Tensor;
  }
  return Object.fromEntries(Object.entries(program.outputs).map(([name, id]) => [name, get(id) as Tensor]));
}

function cacheOf(caches: Map<string, Tensor>, name: string, fresh: Tensor): Tensor {
  const cache = caches.get(name) ?? fresh;
  caches.set(name, cache);
  return cache;
}
