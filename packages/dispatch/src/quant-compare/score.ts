/**
 * What a window costs a model: the likelihood of each next token, which token it would have said, and the last word.
 */
import type { Tensor } from '@metashard/core';
import type { TextWindow } from './text-windows.js';

export interface WindowScore {
  /** Tokens predicted: all but the first. */
  tokens: number;
  /** Negative log likelihood in nats, summed over the tokens. */
  nll: number;
  /** The likeliest next token at each place; the first of equals. */
  guesses: Int32Array;
  /** Guesses that are the next token. */
  hits: number;
  /** Whether all tokens of the last word were guessed, each after the true ones before; null: not asked for. */
  lastWord: boolean | null;
}

/** Rows of logits in JavaScript memory at once. */
const ROWS = 64;

/** Scores logits [T, V] of a window of T tokens. Sums in float64. */
export function scoreWindow(logits: Tensor, { ids, lastWord }: TextWindow): WindowScore {
  const tokens = ids.length - 1;
  const guesses = new Int32Array(tokens);
  let nll = 0;
  for (let start = 0; start < tokens; start += ROWS) {
    const count = Math.min(ROWS, tokens - start);
    const rows = logits.narrow(0, start, count).toFloat32Array();
    const V = rows.length / count;
    for (let t = 0; t < count; t++) {
      const row = rows.subarray(t * V, (t + 1) * V);
      const [guess, logProb] = nextToken(row, ids[start + t + 1] as number);
      guesses[start + t] = guess;
      nll -= logProb;
    }
  }
  const isHit = (t: number): boolean => guesses[t] === ids[t + 1];
  const hits = guesses.reduce((sum, _, t) => sum + (isHit(t) ? 1 : 0), 0);
  const word = lastWord === null ? [] : [...guesses.keys()].filter((t) => t + 1 >= lastWord);
  return { tokens, nll, guesses, hits, lastWord: lastWord === null ? null : word.every(isHit) };
}

/** The largest of a row of logits, and ln softmax of `target`. */
function nextToken(row: Float32Array, target: number): [guess: number, logProb: number] {
  let guess = 0;
  let largest = row[0] as number;
  for (let v = 1; v < row.length; v++) {
    const value = row[v] as number;
    if (value > largest) [guess, largest] = [v, value];
  }
  let sum = 0;
  for (let v = 0; v < row.length; v++) sum += Math.exp((row[v] as number) - largest);
  return [guess, (row[target] as number) - largest - Math.log(sum)];
}

/** A method's scores over all windows. */
export interface QuantQuality {
  /** Mean negative log likelihood in nats. */
  loss: number;
  perplexity: number;
  /** loss minus the float model's. */
  difference: number;
  /** Standard error of `difference`, from its spread over the windows; NaN for one window. */
  standardError: number;
  /** Share of tokens guessed right. */
  nextTokenAccuracy: number;
  /** Share of tokens where the float model guesses the same. */
  agreement: number;
  /** Share of last words guessed right; null where none was asked for. */
  lastWordAccuracy: number | null;
}

/** Sums up scores of the same windows by a method and by the float model. */
export function summarize(scores: readonly WindowScore[], float: readonly WindowScore[]): QuantQuality {
  const total = (count: (score: WindowScore, w: number) => number): number =>
    scores.reduce((sum, s, w) => sum + count(s, w), 0);
  const base = (w: number): WindowScore => float[w] as WindowScore;
  const tokens = total((score) => score.tokens);
  const loss = total((score) => score.nll) / tokens;
  const difference = total((score, w) => score.nll - base(w).nll) / tokens;
  // Standard error of a ratio of sums over windows (Cochran 1977, section 2.11).
  const n = scores.length;
  const squares = total((score, w) => (score.nll - base(w).nll - difference * score.tokens) ** 2);
  const same = total(({ guesses }, w) =>
    guesses.reduce((sum, guess, t) => sum + (guess === base(w).guesses[t] ? 1 : 0), 0),
  );
  const asked = total((score) => (score.lastWord === null ? 0 : 1));
  return {
    loss,
    perplexity: Math.exp(loss),
    difference,
    standardError: n < 2 ? Number.NaN : Math.sqrt((squares * n) / (n - 1)) / tokens,
    nextTokenAccuracy: total((score) => score.hits) / tokens,
    agreement: same / tokens,
    lastWordAccuracy: asked === 0 ? null : total((score) => (score.lastWord === true ? 1 : 0)) / asked,
  };
}
