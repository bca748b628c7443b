/**
 * A step as it travels through the rings: a header, then the Program's step inputs (ids, positions, block tables, …)
 * one after another, then which row of the batch each sequence is. Every segment gets the whole descriptor; tensors
 * between segments go through inboxes, not through here.
 */
import {
  type DimValues,
  elementCount,
  type Program,
  type ProgramTensor,
  resolveDims,
  type TensorId,
} from '@metashard/core';

export const STEP = 1;
/** The run is over: each segment passes it on and its worker leaves the loop. */
export const END = 2;

export const FLAG = {
  /** Read the `logits` of this step to the host. */
  logits: 1,
  /** Choose the next tokens. */
  sample: 2,
  /** Read the `hidden_states.N` taps to the host. */
  hiddenStates: 4,
} as const;

const KIND = 0;
const INDEX = 1;
const FLAGS = 2;
const TOKENS = 3;
const SEQUENCES = 4;
const OUTPUTS = 5;
export const HEADER_WORDS = 8;

export interface StepInput {
  readonly tensor: TensorId;
  readonly name: string;
  readonly spec: ProgramTensor;
}

/** The Program's inputs in a fixed order that all threads share. 4-byte dtypes only. */
export function stepInputs(program: Program): StepInput[] {
  const inputs: StepInput[] = [];
  for (const [tensor, spec] of program.tensors.entries()) {
    if (spec.kind === 'input') inputs.push({ tensor, name: spec.name ?? '', spec });
  }
  return inputs;
}

/**
 * Words of the largest step: rows wanted may be as many as tokens, whatever `dims.outputs` says of one pass through the
 * head.
 */
export function slotWords(program: Program, dims: DimValues): number {
  const most = { ...dims, outputs: Math.max(dims.tokens, dims.outputs) };
  const inputs = stepInputs(program).reduce((sum, { spec }) => sum + elementCount(resolveDims(spec.dims, most)), 0);
  return HEADER_WORDS + inputs + dims.sequences;
}

export interface StepDescriptor {
  index: number;
  flags: number;
  dims: DimValues;
  /** By input name. */
  values: Readonly<Record<string, Int32Array | Float32Array>>;
  /** Row of the batch of each sequence. */
  rows: ArrayLike<number>;
}

export function writeStep(slot: Int32Array, inputs: readonly StepInput[], step: StepDescriptor): void {
  slot[KIND] = STEP;
  slot[INDEX] = step.index;
  slot[FLAGS] = step.flags;
  slot[TOKENS] = step.dims.tokens;
  slot[SEQUENCES] = step.dims.sequences;
  slot[OUTPUTS] = step.dims.outputs;
  let at = HEADER_WORDS;
  for (const { name } of inputs) {
    const value = step.values[name];
    if (value === undefined) throw new Error(`step: no value for input ${name}`);
    slot.set(new Int32Array(value.buffer, value.byteOffset, value.length), at);
    at += value.length;
  }
  for (let i = 0; i < step.rows.length; i++) slot[at + i] = step.rows[i] as number;
}

export function writeEnd(slot: Int32Array): void {
  slot[KIND] = END;
}

/** Reads a slot without copying: `value(name)` is a view into it. */
export class StepView {
  readonly dims: DimValues;
  readonly index: number;
  readonly flags: number;
  readonly rows: Int32Array;
  /** Words of the descriptor: what is copied to the next ring. */
  readonly words: number;
  readonly #values = new Map<TensorId, Int32Array>();

  constructor(
    readonly slot: Int32Array,
    inputs: readonly StepInput[],
  ) {
    this.index = slot[INDEX] as number;
    this.flags = slot[FLAGS] as number;
    this.dims = {
      tokens: slot[TOKENS] as number,
      sequences: slot[SEQUENCES] as number,
      outputs: slot[OUTPUTS] as number,
    };
    let at = HEADER_WORDS;
    for (const { tensor, spec } of inputs) {
      const words = elementCount(resolveDims(spec.dims, this.dims));
      this.#values.set(tensor, slot.subarray(at, at + words));
      at += words;
    }
    this.rows = slot.subarray(at, at + this.dims.sequences);
    this.words = at + this.dims.sequences;
  }

  static isEnd(slot: Int32Array): boolean {
    return slot[KIND] === END;
  }
  value(tensor: TensorId): Int32Array {
    return this.#values.get(tensor) as Int32Array;
  }
}
