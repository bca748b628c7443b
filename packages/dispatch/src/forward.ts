/** `model.forward`: one step over whole sequences, logits (and hidden states) of every token brought back to the main thread. */
import { ArgumentError, ContextLengthError, KV_BLOCK_SIZE, ShapeError, type Tensor, zeros } from '@metashard/core';
import type { BlockAllocator } from './block-allocator.js';
import type { Executors } from './executors.js';
import type { RecordedModel } from './plan-device-map.js';
import { describeBatch } from './scheduler.js';
import { FLAG } from './step.js';

export interface ForwardInputs {
  /** [B, T] token ids. */
  inputIds: readonly (readonly number[])[];
  /** [B, T] of 0 and 1: tokens with 0 are not computed, their logits are 0. Positions count the others. Default: all 1. */
  attentionMask?: readonly (readonly number[])[];
}

export interface ForwardOptions {
  /** Default false. */
  outputHiddenStates?: boolean;
  signal?: AbortSignal;
}

export interface ForwardResult {
  /** float32 [B, T, V]. */
  logits: Tensor;
  /** float32 [B, T, H] each: the embeddings, then after every block, the last after the final norm (as transformers gives them). */
  hiddenStates?: Tensor[];
}

/** The tokens of a batch that are computed: for each row their places in it. */
interface RaggedBatch {
  rows: { ids: Int32Array; places: Int32Array }[];
  B: number;
  T: number;
}

export async function runForward(
  executors: Executors,
  recorded: RecordedModel,
  blocks: BlockAllocator,
  { inputIds, attentionMask }: ForwardInputs,
  { outputHiddenStates = false, signal }: ForwardOptions,
): Promise<ForwardResult> {
  const batch = raggedBatch(inputIds, attentionMask);
  checkSizes(batch, recorded);
  const computed = batch.rows.map((row, index) => ({ ...row, index })).filter(({ ids }) => ids.length > 0);
  // Where computed token t of the step lies in the padded [B · T].
  const targets = Int32Array.from(
    computed.flatMap(({ places, index }) => Array.from(places, (place) => index * batch.T + place)),
  );
  const V = recorded.vocabSize as number;
  const logits = zeros([batch.B, batch.T, V]);
  const hidden = new Map<string, Tensor>();
  if (targets.length > 0) {
    const taken = computed.map(({ ids }) => blocks.take(ids.length));
    try {
      const flags = FLAG.logits | (outputHiddenStates ? FLAG.hiddenStates : 0);
      const rows = computed.map(({ ids }, i) => ({ ids, cached: 0, blocks: taken[i] as Int32Array }));
      const perSequence = Math.ceil(recorded.maxSeqLen / KV_BLOCK_SIZE);
      const step = describeBatch(0, flags, rows, perSequence, 'all', [...rows.keys()]);
      await executors.run(
        { steps: [step] },
        (message) => {
          if (message.type !== 'output') return;
          let into = logits;
          if (message.name !== 'logits') {
            into = hidden.get(message.name) ?? zeros([batch.B, batch.T, message.columns]);
            hidden.set(message.name, into);
          }
          scatterRows(
            into,
            targets.subarray(message.first, message.first + message.rows),
            message.columns,
            message.data,
          );
        },
        signal,
      );
    } finally {
      for (const one of taken) blocks.give(one);
    }
    signal?.throwIfAborted();
  }
  if (!outputHiddenStates) return { logits };
  const byLayer = [...hidden].sort(([a], [b]) => Number(a.split('.')[1]) - Number(b.split('.')[1]));
  return { logits, hiddenStates: byLayer.map(([, value]) => value) };
}

function raggedBatch(inputIds: ForwardInputs['inputIds'], mask: ForwardInputs['attentionMask']): RaggedBatch {
  const B = inputIds.length;
  const T = inputIds[0]?.length ?? 0;
  if (!inputIds.every((row) => row.length === T))
    throw new ShapeError('forward: expected inputIds [B, T] with rows of equal length, got ragged rows');
  if (mask !== undefined && (mask.length !== B || !mask.every((row) => row.length === T))) {
    throw new ShapeError(`forward: expected attentionMask [${B}, ${T}], got [${mask.length}, ${mask[0]?.length ?? 0}]`);
  }
  const rows = inputIds.map((row, b) => {
    const places = Int32Array.from([...row.keys()].filter((t) => mask === undefined || mask[b]?.[t] !== 0));
    return { places, ids: Int32Array.from(places, (t) => row[t] as number) };
  });
  return { rows, B, T };
}

function checkSizes({ rows, B }: RaggedBatch, { maxBatchSize, maxSeqLen }: RecordedModel): void {
  if (B > maxBatchSize) {
    throw new ArgumentError(`forward: expected at most maxBatchSize ${maxBatchSize} rows, got ${B}`, {
      hint: 'load the model with a larger maxBatchSize',
    });
  }
  const longest = rows.reduce((most, { ids }) => Math.max(most, ids.length), 0);
  if (longest > maxSeqLen) {
    throw new ContextLengthError(`forward: expected at most maxSeqLen ${maxSeqLen} tokens, got ${longest}`, {
      hint: 'load the model with a larger maxSeqLen',
      details: { tokens: longest, maxSeqLen },
    });
  }
}

/** Writes rows of `columns` values to rows `targets` of a tensor, runs of neighbours at once. */
function scatterRows(into: Tensor, targets: Int32Array, columns: number, data: Float32Array): void {
  for (let first = 0; first < targets.length; ) {
    let end = first + 1;
    while (end < targets.length && targets[end] === (targets[end - 1] as number) + 1) end++;
    into.storage?.write((targets[first] as number) * columns * 4, data.subarray(first * columns, end * columns));
    first = end;
  }
}

/** What a text costs: mean negative log likelihood of each token after the first, in nats. */
export interface Loss {
  loss: number;
  /** Tokens that were predicted. */
  tokens: number;
  /** ln p of each predicted token. */
  logProbs: Float32Array;
}

/** Log-softmax of each row of logits `[T, V]` at the next token. Sums in float64. */
export function lossOf(logits: Tensor, ids: readonly number[]): Loss {
  const V = logits.dims.at(-1) as number;
  const rows = logits.toFloat32Array();
  const logProbs = new Float32Array(Math.max(0, ids.length - 1));
  let total = 0;
  for (let t = 0; t < logProbs.length; t++) {
    const row = rows.subarray(t * V, (t + 1) * V);
    let largest = Number.NEGATIVE_INFINITY;
    for (const value of row) if (value > largest) largest = value;
    let sum = 0;
    for (const value of row) sum += Math.exp(value - largest);
    const logProb = (row[ids[t + 1] as number] as number) - largest - Math.log(sum);
    logProbs[t] = logProb;
    total -= logProb;
  }
  return { loss: logProbs.length === 0 ? 0 : total / logProbs.length, tokens: logProbs.length, logProbs };
}
