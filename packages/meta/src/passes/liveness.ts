/** When each tensor of a program is first and last needed: what planning the memory of activations rests on. */
import { ArgumentError, type Program, type TensorId } from '@metashard/core';

/** Indices of the first and last op that touch a tensor. */
export interface LiveRange {
  first: number;
  last: number;
}

export interface LiveRangeOptions {
  /** Outputs somebody reads; default all. They live to `program.ops.length`, one past the last op. */
  outputs?: readonly string[];
}

/**
 * The live range of every tensor that some op touches, views counting for the tensor they show. Throws ArgumentError
 * for an unknown output.
 */
export function liveRanges(program: Program, { outputs }: LiveRangeOptions = {}): Map<TensorId, LiveRange> {
  const ranges = new Map<TensorId, LiveRange>();
  const touch = (id: TensorId, index: number): void => {
    if (id < 0) return;
    const base = program.tensors[id]?.of ?? id;
    const range = ranges.get(base);
    if (range === undefined) ranges.set(base, { first: index, last: index });
    else range.last = index;
  };
  for (const [index, op] of program.ops.entries()) {
    for (const id of op.inputs) touch(id, index);
    for (const id of op.outputs) touch(id, index);
  }
  for (const name of outputs ?? Object.keys(program.outputs)) {
    const id = program.outputs[name];
    if (id === undefined) throw new ArgumentError(`liveRanges: expected an output of the program, got "${name}"`);
    touch(id, program.ops.length);
  }
  return ranges;
}
