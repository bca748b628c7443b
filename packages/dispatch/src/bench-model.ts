/**
 * Times a loaded model: a prefill, and decoding of some numbers of sequences, each held to the floor of its devices.
 * What devices could do comes from the cost model (`costs.ts`); this file measures no device alone.
 */
import { type DeviceName, type Program, type ProgramOp, resolveDims, specBytes } from '@metashard/core';
import { type CostModel, workOf } from './costs.js';
import { longestPrefix } from './device-map.js';
import type { LoadedModel } from './loaded-model.js';
import { ProgramFacts } from './program-facts.js';

export interface BenchOptions {
  /** Tokens of the timed prefill; default 512, at most what max_seq_len leaves. */
  promptTokens?: number | undefined;
  /** Steps of each decoding run; default 64. */
  newTokens?: number | undefined;
  /** Numbers of sequences to decode at once; default [1]. */
  batches?: readonly number[] | undefined;
  /** Runs of each row after one that is not counted; the median counts. Default 3. */
  repetitions?: number | undefined;
  costs: CostModel;
  signal?: AbortSignal | undefined;
}

/** One row: a prefill (`sequences` 1, one step of all its tokens) or decoding behind prompts of 16 tokens. */
export interface BenchRow {
  phase: 'prefill' | 'decode';
  sequences: number;
  /** Of all sequences together. */
  tokens: number;
  /** Median milliseconds of the whole run. */
  ms: number;
  tokensPerSecond: number;
  /** Bytes of weights and KV cache that had to be read, per second. */
  bytesPerSecond: number;
  /** Milliseconds that reading (decode) or the linears' operations (prefill) take at the devices' rates. */
  floorMs: number;
}

const DECODE_PROMPT = 16;

/** Random ids: the model's answers do not matter, end tokens are ignored. Throws what `generate` throws. */
export async function benchModel(model: LoadedModel, options: BenchOptions): Promise<BenchRow[]> {
  const { newTokens = 64, batches = [1] } = options;
  const room = model.recorded.maxSeqLen;
  const promptTokens = Math.min(options.promptTokens ?? 512, room - 1);
  const steps = Math.min(newTokens, room - DECODE_PROMPT - 1);
  const work = new StepWork(model, options.costs);
  const rows: BenchRow[] = [];
  const prefillMs = await medianMs(options, async () => (await timeRun(model, 1, promptTokens, 1, options)).firstMs);
  rows.push(row('prefill', 1, promptTokens, prefillMs, work.prefill(promptTokens)));
  for (const sequences of batches) {
    const ms = await medianMs(
      options,
      async () => (await timeRun(model, sequences, DECODE_PROMPT, steps + 1, options)).restMs,
    );
    rows.push(row('decode', sequences, sequences * steps, ms, work.decode(sequences, steps)));
  }
  return rows;
}

interface Work {
  bytes: number;
  floorMs: number;
}

function row(
  phase: BenchRow['phase'],
  sequences: number,
  tokens: number,
  ms: number,
  { bytes, floorMs }: Work,
): BenchRow {
  const perSecond = (amount: number): number => (amount / ms) * 1e3;
  return {
    phase,
    sequences,
    tokens,
    ms,
    tokensPerSecond: perSecond(tokens),
    bytesPerSecond: perSecond(bytes),
    floorMs,
  };
}

async function medianMs({ repetitions = 3 }: BenchOptions, run: () => Promise<number>): Promise<number> {
  await run(); // warms up
  const times: number[] = [];
  for (let i = 0; i < Math.max(1, repetitions); i++) times.push(await run());
  return times.sort((a, b) => a - b)[times.length >> 1] as number;
}

/** Milliseconds to the first token of every sequence, and from there to the last. */
async function timeRun(
  model: LoadedModel,
  sequences: number,
  prompt: number,
  maxNewTokens: number,
  { signal }: BenchOptions,
): Promise<{ firstMs: number; restMs: number }> {
  const { vocabSize } = model.config;
  const ids = (sequence: number): number[] =>
    Array.from({ length: prompt }, (_, i) => (Math.imul(i + 1, 0x9e3779b1 + 2 * sequence) >>> 8) % vocabSize);
  const prompts = Array.from({ length: sequences }, (_, sequence) => ids(sequence));
  const generating = { maxNewTokens, doSample: false, ignoreEos: true, ...(signal === undefined ? {} : { signal }) };
  const start = performance.now();
  let [first, pieces] = [start, 0];
  for await (const piece of model.generate(prompts, generating)) {
    pieces += piece.tokenIds.length;
    if (pieces <= sequences) first = performance.now();
  }
  signal?.throwIfAborted();
  return { firstMs: first - start, restMs: performance.now() - first };
}

/** What steps have to read and compute, place by place: devices work on one sequence's step one after another. */
class StepWork {
  readonly #costs: CostModel;
  readonly #places: Place[];

  constructor({ recorded: { program }, plan }: LoadedModel, costs: CostModel) {
    this.#costs = costs;
    const facts = ProgramFacts.of(program, { tokens: 1, sequences: 1, outputs: 1 });
    const opsOf = new Map<string, ProgramOp[]>();
    for (const op of program.ops) {
      const key = longestPrefix(plan.deviceMap, op.module) ?? '';
      opsOf.set(key, [...(opsOf.get(key) ?? []), op]);
    }
    this.#places = [...opsOf].map(([key, ops]) => {
      const value = plan.deviceMap[key] ?? (plan.devices[0]?.name as string);
      const perToken = ops.filter((op) => program.tensors[op.outputs[0] as number]?.dims[0] === 'tokens');
      return {
        weightsOn: typeof value === 'string' ? value : value.device,
        computesOn: typeof value === 'string' ? (value === 'disk' ? 'cpu:0' : value) : value.execute_on,
        weights: workOf(facts, ops, 0).decodeBytes,
        cachePerToken: cacheBytesPerToken(program, ops),
        operations: workOf(facts, perToken, 0).operations,
      };
    });
  }

  prefill(tokens: number): Work {
    let [bytes, floorMs] = [0, 0];
    for (const { computesOn, weights, operations } of this.#places) {
      bytes += weights;
      floorMs += ((operations * tokens) / this.#costs.of(computesOn).rate) * 1e3;
    }
    return { bytes, floorMs };
  }

  /** Each step reads all weights once, and each sequence's cache up to its token. */
  decode(sequences: number, steps: number): Work {
    const contexts = sequences * steps * (DECODE_PROMPT + (steps + 1) / 2);
    let [bytes, floorMs] = [0, 0];
    for (const { weightsOn, computesOn, weights, cachePerToken } of this.#places) {
      const fromWeights = weightsOn === 'disk' ? this.#costs.diskBandwidth : this.#costs.of(weightsOn).bandwidth;
      const cache = contexts * cachePerToken;
      bytes += steps * weights + cache;
      floorMs += ((steps * weights) / fromWeights + cache / this.#costs.of(computesOn).bandwidth) * 1e3;
    }
    return { bytes, floorMs };
  }
}

/** Ops under one key of the device map: bytes of weights a step reads, of cache per token, operations per token. */
interface Place {
  weightsOn: DeviceName;
  computesOn: DeviceName;
  weights: number;
  cachePerToken: number;
  operations: number;
}

/** Cache tensors are [blocks, heads, tokens of a block, head size]. */
function cacheBytesPerToken({ tensors }: Program, ops: readonly ProgramOp[]): number {
  const caches = new Set(ops.flatMap(({ inputs }) => inputs.filter((id) => tensors[id]?.kind === 'cache')));
  let total = 0;
  for (const id of caches) {
    const tensor = tensors[id];
    if (tensor === undefined) continue;
    const [, heads = 0, , size = 0] = resolveDims(tensor.dims, { tokens: 1, sequences: 1, outputs: 1 });
    total += specBytes({ dims: [heads, size], dtype: tensor.dtype });
  }
  return total;
}
