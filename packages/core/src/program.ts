/**
 * A Program: what a model computes in one step, recorded on the meta device as a flat list of ops over tensor ids.
 * Plain data (structured clone, JSON), without storage: the planner reads it, passes rewrite it, executors encode it
 * for the addon. No device and no address is in it.
 */
import type { DType } from './dtype.js';
import type { Layout, OpName } from './ops.js';
import type { Dim } from './shape.js';

export type TensorId = number;

/**
 * input: given to each step by name. weight: loaded once, shared by name. constant: small values that belong to the
 * program (`data`). cache: state that lives between steps (KV blocks). activation: made and used within a step. view:
 * another tensor's elements under other strides.
 */
export type ProgramTensorKind = 'input' | 'weight' | 'constant' | 'cache' | 'activation' | 'view';

export interface ProgramTensor {
  readonly kind: ProgramTensorKind;
  readonly dims: readonly Dim[];
  readonly dtype: DType;
  readonly layout: Layout;
  /** input, weight, cache: its name (`input_ids`, `transformer.h.0.mlp.dense_h_to_4h.weight`). */
  readonly name?: string;
  /** constant: the values, row-major. */
  readonly data?: readonly number[];
  /** view: the tensor it shows, and where in it (elements). */
  readonly of?: TensorId;
  readonly offset?: number;
  readonly strides?: readonly number[];
}

export interface ProgramOp {
  readonly op: OpName;
  /** -1: an optional input that is absent. */
  readonly inputs: readonly TensorId[];
  readonly outputs: readonly TensorId[];
  readonly attributes: readonly number[];
  /** Path of the module whose forward ran it, "" for the root. */
  readonly module: string;
}

export interface Program {
  readonly version: 1;
  readonly tensors: readonly ProgramTensor[];
  readonly ops: readonly ProgramOp[];
  /** Name → tensor: `logits`, `hidden_states.3`, … */
  readonly outputs: Readonly<Record<string, TensorId>>;
}
