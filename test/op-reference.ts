/**
 * Every op of ops.ts in plain TypeScript, in float64, as its comment there specifies it: what the case table (op-cases.ts) compares backends with.
 * Written for reading: no op shares code with another beyond the few lines at the top. One table of functions, hence longer than other files.
 */
import {
  ACTIVATION_KINDS,
  bfloat16BitsToFloat32,
  type DType,
  float16BitsToFloat32,
  float32ToBfloat16Bits,
  float32ToFloat16Bits,
  type OpName,
  roundHalfEven,
} from '@metashard/core';
import { type HostTensor, hostValues } from './host-tensor.js';

/** One output (or, of attention, one updated cache): exact values before rounding to the output's dtype. */
export interface ReferenceOutput {
  values: Float64Array;
  /** Per element: the size of the terms that were added, to which a float32 sum's error is proportional. Absent: the value itself. */
  magnitude?: Float64Array;
  /** Elements from here on are undefined. */
  defined?: number;
}

export interface Reference {
  outputs: ReferenceOutput[];
  /** Inputs the op writes, by their index. */
  written?: Map<number, ReferenceOutput>;
}

type Inputs = readonly (HostTensor | null)[];
type ReferenceOp = (inputs: Inputs, attributes: readonly number[], outputs: readonly HostTensor[]) => Reference;

const { fround } = Math;
const input = (inputs: Inputs, index: number): HostTensor => inputs[index] as HostTensor;
const values = (inputs: Inputs, index: number): Float64Array => hostValues(input(inputs, index));
const optional = (inputs: Inputs, index: number): Float64Array | null =>
  inputs[index] == null ? null : hostValues(inputs[index]);
const size = (inputs: Inputs, index: number, d: number): number => input(inputs, index).dims[d] as number;
const at = (array: ArrayLike<number>, index: number): number => array[index] as number;
const generate = (count: number, f: (index: number) => number): Float64Array =>
  Float64Array.from({ length: count }, (_, i) => f(i));

export function roundTo(dtype: DType, value: number): number {
  if (dtype === 'float32') return fround(value);
  if (dtype === 'float16') return float16BitsToFloat32(float32ToFloat16Bits(value));
  if (dtype === 'bfloat16') return bfloat16BitsToFloat32(float32ToBfloat16Bits(value));
  return value;
}

function embedding(inputs: Inputs): Reference {
  const [ids, table, H] = [values(inputs, 0), values(inputs, 1), size(inputs, 1, 1)];
  return {
    outputs: [{ values: generate(ids.length * H, (i) => at(table, at(ids, Math.floor(i / H)) * H + (i % H))) }],
  };
}

function layerNorm(inputs: Inputs, [epsilon]: readonly number[]): Reference {
  const [x, weight, bias, H] = [values(inputs, 0), values(inputs, 1), optional(inputs, 2), size(inputs, 0, 1)];
  const magnitude = new Float64Array(x.length);
  const out = new Float64Array(x.length);
  for (let start = 0; start < x.length; start += H) {
    const row = x.subarray(start, start + H);
    const mean = row.reduce((a, b) => a + b, 0) / H;
    const variance = row.reduce((a, b) => a + (b - mean) ** 2, 0) / H;
    for (let i = 0; i < H; i++) {
      const scaled = ((at(row, i) - mean) / Math.sqrt(variance + (epsilon as number))) * at(weight, i);
      out[start + i] = scaled + (bias === null ? 0 : at(bias, i));
      magnitude[start + i] = Math.abs(scaled) + Math.abs(bias === null ? 0 : at(bias, i));
    }
  }
  return { outputs: [{ values: out, magnitude }] };
}

function rmsNorm(inputs: Inputs, [epsilon]: readonly number[]): Reference {
  const [x, weight, H] = [values(inputs, 0), values(inputs, 1), size(inputs, 0, 1)];
  const out = generate(x.length, (i) => {
    const row = x.subarray(i - (i % H), i - (i % H) + H);
    const meanSquare = row.reduce((a, b) => a + b * b, 0) / H;
    return (at(x, i) / Math.sqrt(meanSquare + (epsilon as number))) * at(weight, i % H);
  });
  return { outputs: [{ values: out }] };
}

function linear(inputs: Inputs): Reference {
  const [x, weight, bias] = [values(inputs, 0), values(inputs, 1), optional(inputs, 2)];
  const [rows, K, N] = [size(inputs, 0, 0), size(inputs, 0, 1), size(inputs, 1, 0)];
  const out = new Float64Array(rows * N);
  const magnitude = new Float64Array(rows * N);
  for (let i = 0; i < rows * N; i++) {
    const [t, n] = [Math.floor(i / N), i % N];
    let [sum, size] = [bias === null ? 0 : at(bias, n), Math.abs(bias === null ? 0 : at(bias, n))];
    for (let k = 0; k < K; k++) {
      const product = at(x, t * K + k) * at(weight, n * K + k);
      sum += product;
      size += Math.abs(product);
    }
    out[i] = sum;
    magnitude[i] = size;
  }
  return { outputs: [{ values: out, magnitude }] };
}

/** round(x · scale) as the kernels do it: one float32 product; in float64 where the scale overflows; 0 for NaN. */
function quantized(x: number, absmax: number, scale: number): number {
  if (absmax === 0) return 0;
  const quotient = scale === Number.POSITIVE_INFINITY ? (x * 127) / absmax : fround(x * scale);
  return Number.isNaN(quotient) ? 0 : roundHalfEven(quotient);
}

const absmaxOf = (row: Iterable<number>): number => {
  let largest = 0;
  for (const value of row) largest = Math.max(largest, Math.abs(value));
  return largest;
};

function int8Quantize(inputs: Inputs, [threshold, perRow]: readonly number[]): Reference {
  const [x, rows, K] = [values(inputs, 0), size(inputs, 0, 0), size(inputs, 0, 1)];
  const isOutlier = (value: number): boolean => (threshold as number) > 0 && !(Math.abs(value) < (threshold as number));
  const columns = new Set<number>();
  x.forEach((value, i) => {
    if (isOutlier(value)) columns.add(i % K);
  });
  const SCA = generate(rows, (t) => absmaxOf(x.subarray(t * K, (t + 1) * K).filter((value) => !isOutlier(value))));
  const CA = generate(rows * K, (i) => {
    const dropped = perRow ? isOutlier(at(x, i)) : columns.has(i % K);
    const absmax = at(SCA, Math.floor(i / K));
    return dropped ? 0 : quantized(at(x, i), absmax, fround(127 / absmax));
  });
  const sorted = [...columns].sort((a, b) => a - b);
  const list = generate(K + 1, (i) => (i === 0 ? sorted.length : (sorted[i - 1] ?? 0)));
  return { outputs: [{ values: CA }, { values: SCA }, { values: list, defined: sorted.length + 1 }] };
}

function int8Linear(inputs: Inputs, [threshold, perRow]: readonly number[]): Reference {
  const [x, CA, SCA, columns] = [values(inputs, 0), values(inputs, 1), values(inputs, 2), values(inputs, 3)];
  const [CB, SCB, bias] = [values(inputs, 4), values(inputs, 5), optional(inputs, 6)];
  const [rows, K, N] = [size(inputs, 0, 0), size(inputs, 0, 1), size(inputs, 4, 0)];
  const out = new Float64Array(rows * N);
  const magnitude = new Float64Array(rows * N);
  for (let i = 0; i < rows * N; i++) {
    const [t, n] = [Math.floor(i / N), i % N];
    let accumulator = 0;
    for (let k = 0; k < K; k++) accumulator += at(CA, t * K + k) * at(CB, n * K + k);
    const product = (accumulator * at(SCA, t) * at(SCB, n)) / 127 ** 2;
    let [outliers, size] = [0, 0];
    for (const k of columns.subarray(1, 1 + at(columns, 0))) {
      const value = at(x, t * K + k);
      if (perRow && Math.abs(value) < (threshold as number)) continue;
      outliers += value * at(CB, n * K + k);
      size += Math.abs(value * at(CB, n * K + k));
    }
    const shift = bias === null ? 0 : at(bias, n);
    out[i] = product + (outliers * at(SCB, n)) / 127 + shift;
    magnitude[i] = Math.abs(product) + (size * at(SCB, n)) / 127 + Math.abs(shift);
  }
  return { outputs: [{ values: out, magnitude }] };
}

function int8WeightLinear(inputs: Inputs): Reference {
  const [x, CB, SCB, bias] = [values(inputs, 0), values(inputs, 1), values(inputs, 2), optional(inputs, 3)];
  const [rows, K, N] = [size(inputs, 0, 0), size(inputs, 0, 1), size(inputs, 1, 0)];
  const out = new Float64Array(rows * N);
  const magnitude = new Float64Array(rows * N);
  for (let i = 0; i < rows * N; i++) {
    const [t, n] = [Math.floor(i / N), i % N];
    let [sum, size] = [0, 0];
    for (let k = 0; k < K; k++) {
      const product = at(x, t * K + k) * at(CB, n * K + k);
      sum += product;
      size += Math.abs(product);
    }
    const shift = bias === null ? 0 : at(bias, n);
    out[i] = (sum * at(SCB, n)) / 127 + shift;
    magnitude[i] = (size * at(SCB, n)) / 127 + Math.abs(shift);
  }
  return { outputs: [{ values: out, magnitude }] };
}

function int8Embedding(inputs: Inputs): Reference {
  const [ids, CB, SCB, H] = [values(inputs, 0), values(inputs, 1), values(inputs, 2), size(inputs, 1, 1)];
  const element = (id: number, h: number): number => (at(CB, id * H + h) * at(SCB, id)) / 127;
  return { outputs: [{ values: generate(ids.length * H, (i) => element(at(ids, Math.floor(i / H)), i % H)) }] };
}

function int8Matmul(inputs: Inputs): Reference {
  const [CA, CB, K, N] = [values(inputs, 0), values(inputs, 1), size(inputs, 0, 1), size(inputs, 1, 0)];
  const out = generate(size(inputs, 0, 0) * N, (i) => {
    const [t, n] = [Math.floor(i / N), i % N];
    let sum = 0;
    for (let k = 0; k < K; k++) sum += at(CA, t * K + k) * at(CB, n * K + k);
    return sum;
  });
  return { outputs: [{ values: out }] };
}

function quantizeWeight(inputs: Inputs, [float16First]: readonly number[]): Reference {
  const [given, N, K] = [values(inputs, 0), size(inputs, 0, 0), size(inputs, 0, 1)];
  const w = float16First ? given.map((value) => roundTo('float16', value)) : given;
  const SCB = generate(N, (n) => absmaxOf(w.subarray(n * K, (n + 1) * K)));
  const CB = generate(N * K, (i) => {
    const absmax = at(SCB, Math.floor(i / K));
    const scale = float16First ? fround(fround(1 / absmax) * 127) : fround(127 / absmax);
    return quantized(at(w, i), absmax, scale);
  });
  return { outputs: [{ values: CB }, { values: SCB }] };
}

function dequantizeWeight(inputs: Inputs): Reference {
  const [CB, SCB, K] = [values(inputs, 0), values(inputs, 1), size(inputs, 0, 1)];
  return { outputs: [{ values: CB.map((q, i) => (q * at(SCB, Math.floor(i / K))) / 127) }] };
}

function ropeTable(inputs: Inputs, [scaling]: readonly number[]): Reference {
  const [positions, frequencies] = [values(inputs, 0), values(inputs, 1)];
  const half = frequencies.length;
  const table = (f: (angle: number) => number): ReferenceOutput => ({
    values: generate(
      positions.length * half,
      (i) => f(fround(at(positions, Math.floor(i / half)) * at(frequencies, i % half))) * (scaling as number),
    ),
    magnitude: generate(positions.length * half, () => Math.abs(scaling as number)),
  });
  return { outputs: [table(Math.cos), table(Math.sin)] };
}

function rope(inputs: Inputs, [interleaved]: readonly number[]): Reference {
  const [x, cos, sin] = [values(inputs, 0), values(inputs, 1), values(inputs, 2)];
  const [N, D, half] = [size(inputs, 0, 1), size(inputs, 0, 2), size(inputs, 1, 1)];
  const magnitude = new Float64Array(x.length);
  const out = generate(x.length, (i) => {
    const [d, t] = [i % D, Math.floor(i / (N * D))];
    magnitude[i] = Math.abs(at(x, i));
    if (d >= 2 * half) return at(x, i);
    const [pair, second] = interleaved ? [d >> 1, d % 2 === 1] : [d % half, d >= half];
    const step = interleaved ? 1 : half;
    const [a, b] = second ? [at(x, i - step), at(x, i)] : [at(x, i), at(x, i + step)];
    const [c, s] = [at(cos, t * half + pair), at(sin, t * half + pair)];
    const [x1, x2] = second ? [b * c, a * s] : [a * c, -b * s];
    magnitude[i] = Math.abs(x1) + Math.abs(x2);
    return x1 + x2;
  });
  return { outputs: [{ values: out, magnitude }] };
}

/** Complementary error function: Taylor series of erf near 0, Lentz's continued fraction beyond (Abramowitz & Stegun 7.1.5, 7.1.14). */
function erfc(x: number): number {
  if (Number.isNaN(x)) return x;
  if (x < 0) return 2 - erfc(-x);
  if (x > 27) return 0;
  if (x < 2.5) {
    let [term, sum] = [x, x];
    for (let n = 1; n < 100; n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return 1 - (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = 0;
  for (let n = 200; n >= 1; n--) fraction = n / 2 / (x + fraction);
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + fraction);
}

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const ACTIVATIONS: Record<(typeof ACTIVATION_KINDS)[number], (x: number) => number> = {
  relu: (x) => Math.max(x, 0),
  gelu: (x) => x * (erfc(-x / Math.SQRT2) / 2),
  gelu_tanh: (x) => x * sigmoid(2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)),
  quick_gelu: (x) => x * sigmoid(1.702 * x),
  silu: (x) => x * sigmoid(x),
  tanh: Math.tanh,
  sigmoid,
  relu_squared: (x) => (x < 0 ? 0 : x * x),
};

function activation(inputs: Inputs, [kind]: readonly number[]): Reference {
  const f = ACTIVATIONS[ACTIVATION_KINDS[kind as number] as (typeof ACTIVATION_KINDS)[number]];
  const x = values(inputs, 0);
  const out = x.map(f);
  return { outputs: [{ values: out, magnitude: out.map((y, i) => Math.abs(y) + 0.05 * Math.abs(at(x, i))) }] };
}

function cast(inputs: Inputs, _: readonly number[], [out]: readonly HostTensor[]): Reference {
  const { dtype } = out as HostTensor;
  return { outputs: [{ values: values(inputs, 0).map((x) => roundTo(dtype, x)) }] };
}

function selectRows(inputs: Inputs): Reference {
  const [x, rows, H] = [values(inputs, 0), values(inputs, 1), size(inputs, 0, 1)];
  return { outputs: [{ values: generate(rows.length * H, (i) => at(x, at(rows, Math.floor(i / H)) * H + (i % H))) }] };
}

/** First index of the largest value; NaN is larger than all. */
function largestIndex(row: Float64Array): number {
  const nan = row.findIndex(Number.isNaN);
  return nan >= 0 ? nan : row.indexOf(row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY));
}

function argmax(inputs: Inputs): Reference {
  const [x, V] = [values(inputs, 0), size(inputs, 0, 1)];
  return {
    outputs: [{ values: generate(size(inputs, 0, 0), (r) => largestIndex(x.subarray(r * V, (r + 1) * V))) }],
  };
}

function sample(inputs: Inputs): Reference {
  const [logits, parameters, uniforms, history, lengths] = [0, 1, 2, 3, 4].map((i) => values(inputs, i)) as [
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
  ];
  const [R, V, L] = [size(inputs, 0, 0), size(inputs, 0, 1), size(inputs, 3, 1)];
  const ids = generate(R, (r) => {
    const seen = history.subarray(r * L, r * L + at(lengths, r));
    return sampleRow(
      logits.slice(r * V, (r + 1) * V),
      parameters.subarray(r * 4, r * 4 + 4),
      at(uniforms, r),
      new Set(seen),
    );
  });
  return { outputs: [{ values: ids }] };
}

function sampleRow(row: Float64Array, parameters: Float64Array, uniform: number, seen: Set<number>): number {
  const [temperature, topK, topP, penalty] = parameters as unknown as [number, number, number, number];
  for (const id of seen) row[id] = at(row, id) > 0 ? at(row, id) / penalty : at(row, id) * penalty;
  const greedy = largestIndex(row);
  const top = at(row, greedy);
  if (!(temperature > 0) || !Number.isFinite(top)) return greedy;
  const weights = row.map((logit) => Math.exp((logit - top) / temperature));
  const order = [...weights.keys()].sort((a, b) => at(weights, b) - at(weights, a) || a - b);
  let kept = topK >= 1 ? order.slice(0, topK) : order;
  const sum = (ids: number[]): number => ids.reduce((total, id) => total + at(weights, id), 0);
  if (topP < 1) {
    const limit = topP * sum(kept);
    let reached = 0;
    const last = kept.findIndex((id) => {
      reached += at(weights, id);
      return reached >= limit;
    });
    kept = kept.slice(0, last < 0 ? kept.length : last + 1);
  }
  const target = uniform * sum(kept);
  let cumulative = 0;
  return kept.find((id) => {
    cumulative += at(weights, id);
    return cumulative > target;
  }) as number;
}

/** One head of one query token: softmax over the positions it sees. `score` and `value` read the context. */
function attendOne(D: number, seen: number[], score: (p: number) => number, value: (p: number, d: number) => number) {
  const scores = seen.map(score);
  const top = Math.max(...scores);
  const weights = scores.map((s) => Math.exp(s - top));
  const total = weights.reduce((a, b) => a + b, 0);
  const weighted = (d: number, f: (v: number) => number): number =>
    seen.reduce((sum, p, i) => sum + (at(weights, i) / total) * f(value(p, d)), 0);
  return {
    out: generate(D, (d) => weighted(d, (v) => v)),
    magnitude: generate(D, (d) => weighted(d, Math.abs)),
  };
}

/** A row of an int8 cache: its values and, behind them, the four bytes of its scale, all as int8. */
export function int8CacheRow(row: ArrayLike<number>): number[] {
  const x = Array.from(row);
  const absmax = Math.max(...x.map(Math.abs));
  const inverse = absmax < 1e-36 ? 0 : fround(127 / absmax);
  const scale = x.every(Number.isFinite) ? fround(absmax / 127) : Number.NaN;
  const steps = x.map((value) => roundHalfEven(fround(value * inverse) || 0));
  return [...steps, ...new Int8Array(Float32Array.of(scale).buffer)];
}

/** What the rows of a cache stand for, [blocks · KV · block, D]. */
function cachedNumbers(stored: Float64Array, dtype: DType, D: number): Float64Array {
  if (dtype !== 'int8') return stored;
  return generate((stored.length / (D + 4)) * D, (i) => {
    const first = Math.floor(i / D) * (D + 4);
    const scale = new Float32Array(Int8Array.from(stored.subarray(first + D, first + D + 4)).buffer)[0] as number;
    return scale * at(stored, first + (i % D));
  });
}

/** Caches as stored with the call's rows written into them, or null. */
function writtenCache(inputs: Inputs, index: number, source: number): Float64Array | null {
  const cache = inputs[index];
  if (cache == null) return null;
  const [out, fresh, tables] = [hostValues(cache), values(inputs, source), values(inputs, 8)];
  const [, KV, block, width] = cache.dims as readonly [number, number, number, number];
  const D = size(inputs, source, 2);
  const [starts, lengths, contexts] = [values(inputs, 5), values(inputs, 6), values(inputs, 7)];
  starts.forEach((start, s) => {
    for (let t = 0; t < at(lengths, s); t++) {
      const position = at(contexts, s) - at(lengths, s) + t;
      const id = at(tables, s * size(inputs, 8, 1) + Math.floor(position / block));
      for (let h = 0; h < KV; h++) {
        const first = ((start + t) * KV + h) * D;
        const row = fresh.subarray(first, first + D);
        const stored = cache.dtype === 'int8' ? int8CacheRow(row) : row.map((x) => roundTo(cache.dtype, x));
        out.set(stored, ((id * KV + h) * block + (position % block)) * width);
      }
    }
  });
  return out;
}

function attention(inputs: Inputs, attributes: readonly number[], outputs: readonly HostTensor[]): Reference {
  const [scale, causal, window, softcap] = attributes as readonly [number, number, number, number];
  const [q, slopes] = [values(inputs, 0), optional(inputs, 9)];
  const [N, D, KV] = [size(inputs, 0, 1), size(inputs, 0, 2), size(inputs, 1, 1)];
  const caches = [writtenCache(inputs, 3, 1), writtenCache(inputs, 4, 2)] as const;
  const numbers = caches.map((cache) => cache && cachedNumbers(cache, input(inputs, 3).dtype, D));
  const fresh = [values(inputs, 1), values(inputs, 2)] as const;
  const [starts, lengths, contexts] = [values(inputs, 5), values(inputs, 6), values(inputs, 7)];
  const [out, magnitude] = [hostValues(outputs[0] as HostTensor), new Float64Array(q.length)];
  const tables = optional(inputs, 8);
  const row = (which: 0 | 1, s: number, position: number, h: number): Float64Array => {
    const cache = numbers[which] ?? null;
    let first = ((at(starts, s) + position) * KV + h) * D;
    if (cache !== null) {
      const block = size(inputs, 3, 2);
      const id = at(tables as Float64Array, s * size(inputs, 8, 1) + Math.floor(position / block));
      first = ((id * KV + h) * block + (position % block)) * D;
    }
    return (cache ?? fresh[which]).subarray(first, first + D);
  };
  starts.forEach((start, s) => {
    for (let i = 0; i < at(lengths, s) * N; i++) {
      const [t, n] = [Math.floor(i / N), i % N];
      const [position, h] = [at(contexts, s) - at(lengths, s) + t, Math.floor(n / (N / KV))];
      const sees = (p: number): boolean => (!causal || p <= position) && (window <= 0 || position - p < window);
      const seen = [...Array(at(contexts, s)).keys()].filter(sees);
      const query = q.subarray(((start + t) * N + n) * D, ((start + t) * N + n + 1) * D);
      const keys = new Map(seen.map((p) => [p, [row(0, s, p, h), row(1, s, p, h)] as const]));
      const score = (p: number): number => {
        const product = scale * query.reduce((sum, x, d) => sum + x * at(keys.get(p)?.[0] as Float64Array, d), 0);
        const capped = softcap > 0 ? softcap * Math.tanh(product / softcap) : product;
        return capped + (slopes === null ? 0 : at(slopes, n) * (p - position));
      };
      const one = attendOne(D, seen, score, (p, d) => at(keys.get(p)?.[1] as Float64Array, d));
      out.set(one.out, ((start + t) * N + n) * D);
      magnitude.set(one.magnitude, ((start + t) * N + n) * D);
    }
  });
  const written = new Map<number, ReferenceOutput>();
  caches.forEach((cache, i) => {
    if (cache !== null) written.set(3 + i, { values: cache });
  });
  return { outputs: [{ values: out, magnitude }], written };
}

const elementwise =
  (f: (a: number, b: number) => number): ReferenceOp =>
  (inputs) => {
    const [a, b] = [values(inputs, 0), values(inputs, 1)];
    return { outputs: [{ values: a.map((x, i) => f(x, at(b, i))) }] };
  };

const same: ReferenceOp = (inputs) => ({ outputs: [{ values: values(inputs, 0) }] });

export const OP_REFERENCES: Record<OpName, ReferenceOp> = {
  embedding,
  layer_norm: layerNorm,
  rms_norm: rmsNorm,
  linear,
  int8_quantize: int8Quantize,
  int8_linear: int8Linear,
  int8_matmul: int8Matmul,
  quantize_weight: quantizeWeight,
  dequantize_weight: dequantizeWeight,
  pack_int8: same,
  unpack_int8: same,
  attention,
  rope_table: ropeTable,
  rope,
  activation,
  add: elementwise((a, b) => a + b),
  mul: elementwise((a, b) => a * b),
  cast,
  copy: same,
  select_rows: selectRows,
  argmax,
  sample,
  int8_weight_linear: int8WeightLinear,
  int8_embedding: int8Embedding,
};
