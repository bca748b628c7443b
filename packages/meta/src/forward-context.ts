/**
 * What a causal language model's forward gets beside its inputs: positions, the ragged step, caches, and a place to
 * leave intermediate results. Here for eager use; recording makes its own (`causal-lm.ts`).
 */
import { ArgumentError, type DeviceName, type F, type Tensor, tensor } from '@metashard/core';
import type { Module } from './module.js';

export interface KeyValueCache {
  /** [blocks, kvHeads, KV_BLOCK_SIZE, headDim] each; of int8, headDim + 4 (kvRowElements). */
  k: Tensor;
  v: Tensor;
}

export interface ForwardContext {
  /** int32 [tokens]: each row's place in its sequence. */
  readonly positions: Tensor;
  readonly step: F.AttentionStep;
  /** The cache of one attention module; null where nothing is kept between steps. */
  cache(module: Module, kvHeads: number, headDim: number): KeyValueCache | null;
  /** Leaves a tensor under a name, such as `hidden_states.3`. */
  tap(name: string, value: Tensor): void;
}

export interface EagerContext extends ForwardContext {
  /** What was left by `tap`. */
  readonly taps: ReadonlyMap<string, Tensor>;
}

/**
 * A context for running `model.forward` eagerly over whole sequences of these lengths, laid one after another, without
 * a cache. Tensors lie where the model's first parameter does. Throws ArgumentError for no or empty sequences.
 */
export function eagerContext(model: Module, lengths: readonly number[]): EagerContext {
  if (lengths.length === 0 || lengths.some((length) => !Number.isInteger(length) || length < 1)) {
    throw new ArgumentError(`eagerContext: expected lengths of at least 1, got [${lengths.join(', ')}]`);
  }
  const device = deviceOf(model);
  const int32 = (values: number[]): Tensor => tensor(values, { dtype: 'int32', device });
  const starts = lengths.map((_, i) => lengths.slice(0, i).reduce((sum, length) => sum + length, 0));
  const taps = new Map<string, Tensor>();
  return {
    positions: int32(lengths.flatMap((length) => Array.from({ length }, (_, position) => position))),
    step: {
      queryStarts: int32(starts),
      queryLengths: int32([...lengths]),
      contextLengths: int32([...lengths]),
      blockTables: null,
    },
    cache: () => null,
    tap: (name, value) => taps.set(name, value),
    taps,
  };
}

function deviceOf(model: Module): DeviceName {
  const first = model.parameters()[0];
  return first === undefined || first.isMeta ? 'cpu' : first.device;
}
