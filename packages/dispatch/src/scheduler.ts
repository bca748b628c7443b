/**
 * Decides the steps of one generation: all prompts in the first step, then one token of every unfinished row a step.
 * Runs in the worker of the first segment, so that no token waits for the main thread. Does not choose tokens
 * (`sampler.ts`) and does not allocate cache blocks (`block-allocator.ts`).
 */
import type { GenerationRow, GenerationSpec } from './executor-protocol.js';
import type { Control } from './ring.js';
import { FLAG, type StepDescriptor } from './step.js';

interface RowState extends GenerationRow {
  /** Ids of the next step. */
  next: Int32Array;
  /** Tokens in the cache before the next step. */
  length: number;
  chosen: number;
  finished: boolean;
}

export class StepScheduler {
  readonly #rows: RowState[];
  readonly #endIds: ReadonlySet<number>;
  /** Rows of the step under way, by sequence. */
  #underWay: number[] | null = null;
  #step = 0;

  constructor(
    readonly spec: GenerationSpec,
    readonly control: Control,
  ) {
    this.#rows = spec.rows.map((row) => ({
      ...row,
      next: row.ids,
      length: row.cached,
      chosen: 0,
      finished: row.maxNewTokens <= 0,
    }));
    this.#endIds = new Set(spec.endIds);
  }

  /** The next step, "wait" while tokens of the last one are out, or "end". */
  next(): StepDescriptor | 'wait' | 'end' {
    if (this.#underWay !== null) return 'wait';
    if (this.control.aborted) return 'end';
    for (const [i, row] of this.#rows.entries()) if (this.control.rowStopped(i)) row.finished = true;
    const active = [...this.#rows.keys()].filter((i) => !this.#rows[i]?.finished);
    if (active.length === 0) return 'end';
    this.#underWay = active;
    return this.#describe(active);
  }

  /** Tokens chosen for the step under way, in the order of its sequences. */
  accept(ids: ArrayLike<number>): void {
    for (const [sequence, i] of (this.#underWay ?? []).entries()) {
      const row = this.#rows[i] as RowState;
      const id = ids[sequence] as number;
      row.length += row.next.length;
      row.next = Int32Array.of(id);
      row.chosen++;
      row.finished ||= row.chosen >= row.maxNewTokens || this.#endIds.has(id);
    }
    this.#underWay = null;
  }

  #describe(active: readonly number[]): StepDescriptor {
    const rows = active.map((i) => this.#rows[i] as RowState);
    const flags = FLAG.sample | (this.spec.outputLogits ? FLAG.logits : 0);
    return describeBatch(
      this.#step++,
      flags,
      rows.map((row) => ({ ids: row.next, cached: row.length, blocks: row.blocks })),
      this.spec.blocksPerSequence,
      'last',
      active,
    );
  }
}

export interface BatchRow {
  ids: Int32Array;
  cached: number;
  blocks: Int32Array;
  /** Positions of `ids`; default: cached, cached + 1, … */
  positions?: Int32Array;
}

/**
 * A ragged batch as the inputs of a causal LM's Program. `wanted`: logits of each row's last token, or of all tokens.
 */
export function describeBatch(
  index: number,
  flags: number,
  rows: readonly BatchRow[],
  blocksPerSequence: number,
  wanted: 'last' | 'all',
  rowNumbers: ArrayLike<number>,
): StepDescriptor {
  const tokens = rows.reduce((sum, row) => sum + row.ids.length, 0);
  const sequences = rows.length;
  const outputs = wanted === 'all' ? tokens : sequences;
  const values = {
    input_ids: new Int32Array(tokens),
    positions: new Int32Array(tokens),
    query_starts: new Int32Array(sequences),
    query_lengths: new Int32Array(sequences),
    context_lengths: new Int32Array(sequences),
    block_tables: new Int32Array(sequences * blocksPerSequence),
    output_rows: Int32Array.from({ length: outputs }, (_, i) => i),
  };
  let at = 0;
  for (const [s, row] of rows.entries()) {
    values.input_ids.set(row.ids, at);
    for (let i = 0; i < row.ids.length; i++) values.positions[at + i] = row.positions?.[i] ?? row.cached + i;
    values.query_starts[s] = at;
    values.query_lengths[s] = row.ids.length;
    values.context_lengths[s] = row.cached + row.ids.length;
    values.block_tables.set(row.blocks.subarray(0, blocksPerSequence), s * blocksPerSequence);
    at += row.ids.length;
    if (wanted === 'last') values.output_rows[s] = at - 1;
  }
  return { index, flags, dims: { tokens, sequences, outputs }, values, rows: rowNumbers };
}
