/**
 * `chooseThreshold`: the outlier threshold of LLM.int8() for one model, measured on a text of the user's: the largest
 * one (the fewest columns in float, so the fastest) whose loss stays within a bound of the float model's.
 */
import { ArgumentError } from '@metashard/core';
import { type QuantCompareOptions, type QuantResult, QuantSession } from './compare-quantization.js';
import { quantMethods } from './quant-methods.js';
import type { QuantText } from './text-windows.js';

export interface ChooseThresholdOptions extends Omit<QuantCompareOptions, 'methods' | 'thresholds' | 'outliersFrom'> {
  /** Thresholds to try. Default 6, 5, 4, 3, 2.5 and 2. */
  candidates?: readonly number[] | undefined;
  /** Most that the loss may rise above float's, in nats per token. Default 0.01: one percent of perplexity. */
  bound?: number | undefined;
  /** As the model will be loaded. Default "per-batch". */
  outliers?: 'per-batch' | 'per-row' | undefined;
}

export interface ThresholdChoice {
  /** null: no candidate stays within the bound. */
  threshold: number | null;
  bound: number;
  float: QuantResult;
  /** Every threshold tried, from the largest on; the last is the chosen one, if any is. */
  measured: QuantResult[];
  /** One sentence: what was chosen and what was measured. */
  summary: string;
}

export const THRESHOLD_CANDIDATES: readonly number[] = [6, 5, 4, 3, 2.5, 2];
export const DEFAULT_LOSS_BOUND = 0.01;

/**
 * Tries thresholds from the largest on and stops at the first within the bound. A model none of them suits is better
 * off with float activations over int8 weights. Throws as `compareQuantization`; ArgumentError for no candidates or a
 * bound below 0.
 */
export async function chooseThreshold(
  nameOrFolder: string,
  text: QuantText,
  {
    candidates = THRESHOLD_CANDIDATES,
    bound = DEFAULT_LOSS_BOUND,
    outliers = 'per-batch',
    onProgress,
    signal,
    ...options
  }: ChooseThresholdOptions = {},
): Promise<ThresholdChoice> {
  if (candidates.length === 0) throw new ArgumentError('candidates: expected at least one threshold, got none');
  if (!(bound >= 0)) throw new ArgumentError(`bound: expected nats from 0 on, got ${bound}`);
  const name = outliers === 'per-row' ? 'llm-int8-per-row' : 'llm-int8';
  const [floatMethod, ...methods] = quantMethods(
    [name],
    [...new Set(candidates)].sort((a, b) => b - a),
  );
  const session = await QuantSession.open(nameOrFolder, text, options);
  try {
    const float = await session.measure(floatMethod as NonNullable<typeof floatMethod>, { onProgress, signal });
    const measured: QuantResult[] = [];
    for (const method of methods) {
      const result = await session.measure(method, { onProgress, signal });
      measured.push(result);
      if (result.difference <= bound) break;
    }
    const last = measured.at(-1) as QuantResult;
    const threshold = last.difference <= bound ? last.threshold : null;
    return { threshold, bound, float, measured, summary: summaryOf(threshold, bound, measured) };
  } finally {
    session.dispose();
  }
}

function summaryOf(threshold: number | null, bound: number, measured: readonly QuantResult[]): string {
  const rises = measured.map((one) => `${one.threshold}: ${signed(one.difference)}`).join(', ');
  const chosen = threshold === null ? 'no threshold' : `threshold ${threshold}`;
  const advice = threshold === null ? '; int8_activations: float keeps more' : '';
  return `${chosen} stays within ${bound} nats of float (measured ${rises})${advice}`;
}

function signed(nats: number): string {
  return `${nats < 0 ? '' : '+'}${nats.toFixed(4)}`;
}
