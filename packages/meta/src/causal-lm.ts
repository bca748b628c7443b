/**
 * Causal language models: what their root modules take and give, and recording one step of them as a Program. How a
 * model computes is in `architectures/`; running a Program is dispatch's.
 */
import { type DType, KV_BLOCK_SIZE, kvRowElements, type Program, type Tensor, type TensorSpec } from '@metashard/core';
import type { ForwardContext } from './forward-context.js';
import type { Module } from './module.js';
import { shareCommonOps } from './passes/share-common-ops.js';
import { type Recording, record } from './recorder.js';

export interface CausalLMInputs {
  /** int32 [tokens] */
  inputIds: Tensor;
  /** int32 [outputs]: the rows whose logits are wanted. */
  outputRows: Tensor;
}

/** A root module: hidden states of all rows, logits `[outputs, V]` of the wanted ones. */
export interface CausalLM extends Module {
  forward(inputs: CausalLMInputs, context: ForwardContext): Tensor;
}

export interface RecordCausalLMOptions {
  /** Blocks of KV_BLOCK_SIZE tokens in each layer's cache. */
  cacheBlocks: number;
  /** Columns of the block table: the most blocks one sequence may have. */
  blocksPerSequence: number;
  cacheDtype?: DType;
}

const int32 = (...dims: TensorSpec['dims']): TensorSpec => ({ dims, dtype: 'int32' });

/**
 * Records one step over a ragged batch with a paged cache. Inputs, all int32: input_ids, positions [tokens];
 * query_starts, query_lengths, context_lengths [sequences]; block_tables [sequences, blocksPerSequence]; output_rows
 * [outputs]. Caches are `<attention path>.k` and `.v`. Outputs: `logits` and, with transformers' meaning,
 * `hidden_states.0 … n`. Common ops are shared already.
 */
export function recordCausalLM(
  model: CausalLM,
  { cacheBlocks, blocksPerSequence, cacheDtype = 'float32' }: RecordCausalLMOptions,
): Program {
  const inputs = {
    input_ids: int32('tokens'),
    positions: int32('tokens'),
    query_starts: int32('sequences'),
    query_lengths: int32('sequences'),
    context_lengths: int32('sequences'),
    block_tables: int32('sequences', blocksPerSequence),
    output_rows: int32('outputs'),
  };
  const program = record(model, inputs, (tensors, recording) => {
    const { input_ids: inputIds, output_rows: outputRows, ...step } = tensors as Record<keyof typeof inputs, Tensor>;
    const context = recordingContext(step, recording, (kvHeads, headDim) => ({
      dims: [cacheBlocks, kvHeads, KV_BLOCK_SIZE, kvRowElements(cacheDtype, headDim)],
      dtype: cacheDtype,
    }));
    return { logits: model.forward({ inputIds, outputRows }, context) };
  });
  return shareCommonOps(program);
}

type StepInputs = Record<'positions' | 'query_starts' | 'query_lengths' | 'context_lengths' | 'block_tables', Tensor>;

function recordingContext(
  step: StepInputs,
  recording: Recording,
  cacheSpec: (kvHeads: number, headDim: number) => TensorSpec,
): ForwardContext {
  return {
    positions: step.positions,
    step: {
      queryStarts: step.query_starts,
      queryLengths: step.query_lengths,
      contextLengths: step.context_lengths,
      blockTables: step.block_tables,
    },
    cache(module, kvHeads, headDim) {
      const path = recording.pathOf(module);
      const { dims, dtype } = cacheSpec(kvHeads, headDim);
      return { k: recording.cache(`${path}.k`, dims, dtype), v: recording.cache(`${path}.v`, dims, dtype) };
    },
    tap: (name, tensor) => recording.tap(name, tensor),
  };
}
