/**
 * The quantization methods that can be compared, as the paper's Table 1 names them (Dettmers et al. 2022, arXiv
 * 2208.07339), and what each does to weights and activations. How they are computed is `compared-linear.ts`.
 */
import { ArgumentError, nearestWord } from '@metashard/core';

/**
 * How values become 8 bits: symmetric about zero by the largest magnitude (absmax) or over their range (zero-point),
 * with one scale for a tensor or one for each row (tokens of activations, output features of weights).
 */
export interface Int8Scheme {
  range: 'absmax' | 'zeropoint';
  scales: 'tensor' | 'row';
}

export interface QuantMethod {
  /** As asked for: `llm-int8`. */
  name: string;
  /** As shown: `LLM.int8(), threshold 6`. */
  label: string;
  weights: Int8Scheme | 'float';
  activations: Int8Scheme | 'float';
  /** Activations of this magnitude and above stay in float, with their columns; 0: none do. */
  threshold: number;
  outliers: 'per-batch' | 'per-row';
}

const int8 = (range: Int8Scheme['range'], scales: Int8Scheme['scales']): Int8Scheme => ({ range, scales });

interface Family {
  label: string;
  weights: Int8Scheme | 'float';
  activations: Int8Scheme | 'float';
  /** One method for each threshold. */
  decomposed?: true;
  outliers?: QuantMethod['outliers'];
}

/** Vector-wise: a scale per row of activations and per output feature; row-wise: per row of activations only. */
const FAMILIES = {
  float: { label: 'float', weights: 'float', activations: 'float' },
  absmax: { label: 'absmax', weights: int8('absmax', 'tensor'), activations: int8('absmax', 'tensor') },
  zeropoint: { label: 'zero-point', weights: int8('zeropoint', 'tensor'), activations: int8('zeropoint', 'tensor') },
  'absmax-row': { label: 'absmax row-wise', weights: int8('absmax', 'tensor'), activations: int8('absmax', 'row') },
  'absmax-vector': { label: 'absmax vector-wise', weights: int8('absmax', 'row'), activations: int8('absmax', 'row') },
  'zeropoint-vector': {
    label: 'zero-point vector-wise',
    weights: int8('zeropoint', 'row'),
    activations: int8('zeropoint', 'row'),
  },
  'absmax-row-decomposed': {
    label: 'absmax row-wise + decomposition',
    weights: int8('absmax', 'tensor'),
    activations: int8('absmax', 'row'),
    decomposed: true,
  },
  'llm-int8': {
    label: 'LLM.int8()',
    weights: int8('absmax', 'row'),
    activations: int8('absmax', 'row'),
    decomposed: true,
  },
  'llm-int8-per-row': {
    label: 'LLM.int8(), outliers per row',
    weights: int8('absmax', 'row'),
    activations: int8('absmax', 'row'),
    decomposed: true,
    outliers: 'per-row',
  },
  'llm-int8-zeropoint': {
    label: 'LLM.int8() zero-point',
    weights: int8('zeropoint', 'row'),
    activations: int8('zeropoint', 'row'),
    decomposed: true,
  },
  'int8-weights': { label: 'int8 weights, float activations', weights: int8('absmax', 'row'), activations: 'float' },
} as const satisfies Record<string, Family>;

export const QUANT_METHODS = Object.keys(FAMILIES) as (keyof typeof FAMILIES)[];
export const DEFAULT_THRESHOLDS: readonly number[] = [6, 3];

/**
 * The methods of these names, in the order of Table 1 with float first (it is what the others are compared with);
 * those with an outlier decomposition once per threshold. Throws ArgumentError for an unknown name or a threshold that
 * is not above 0.
 */
export function quantMethods(
  names: readonly string[] = QUANT_METHODS,
  thresholds: readonly number[] = DEFAULT_THRESHOLDS,
): QuantMethod[] {
  for (const name of names) {
    if (Object.hasOwn(FAMILIES, name)) continue;
    const near = nearestWord(name, QUANT_METHODS);
    throw new ArgumentError(`methods: expected ${QUANT_METHODS.join(', ')}, got "${name}"`, {
      hint: near === undefined ? undefined : `did you mean ${near}?`,
    });
  }
  const wanted = QUANT_METHODS.filter((name) => name === 'float' || names.includes(name));
  return wanted.flatMap((name) => {
    const { label, weights, activations, decomposed, outliers = 'per-batch' }: Family = FAMILIES[name];
    const method: QuantMethod = { name, label, weights, activations, threshold: 0, outliers };
    if (decomposed !== true) return [method];
    return thresholds.map((threshold) => ({
      ...method,
      ...checked(threshold),
      label: `${label}, threshold ${threshold}`,
    }));
  });
}

function checked(threshold: number): { threshold: number } {
  if (threshold > 0 && Number.isFinite(threshold)) return { threshold };
  throw new ArgumentError(`thresholds: expected numbers above 0, got ${threshold}`);
}
