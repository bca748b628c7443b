/** Cases of attention: ragged batches, paged caches of every dtype, masks, biases, tiles and split contexts. */
import type { DType } from '@metashard/core';
import { emptyHost, type HostTensor, hostTensor, hostValues } from './host-tensor.js';
import { type AddCase, type BuiltCase, floats, ints, type Random } from './op-case.js';
import { int8CacheRow, roundTo } from './op-reference.js';

export interface AttentionShape {
  N: number;
  KV: number;
  D: number;
  /** [queries, context] of each sequence. */
  sequences: [number, number][];
  cache?: DType;
  block?: number;
  causal?: number;
  window?: number;
  softcap?: number;
  alibi?: boolean;
  /** q, k and v as views of one [tokens, N + 2 KV, D]. */
  fused?: boolean;
  /** Lets the op round to bfloat16; q, k, v and the caches are bfloat16 numbers already. */
  bfloat16?: boolean;
  /** A NaN in the last token's key and value: earlier tokens must not see it. */
  nan?: boolean;
}

/** Rows of two tokens no sequence owns come first; blocks are handed out in a shuffled order. */
export function attentionCase(r: Random, shape: AttentionShape): BuiltCase {
  const { N, KV, D, sequences, cache, block = 16, causal = 1, window = 0, softcap = 0 } = shape;
  const unused = 2;
  const tokens = unused + sequences.reduce((sum, [queries]) => sum + queries, 0);
  const normals = r.normals(tokens * (N + 2 * KV) * D);
  const all = shape.bfloat16 ? normals.map((x) => roundTo('bfloat16', x)) : normals;
  if (shape.nan) for (let i = 0; i < 2 * KV * D; i++) all[(tokens - 1) * (N + 2 * KV) * D + N * D + i] = Number.NaN;
  const whole = hostTensor([tokens, N + 2 * KV, D], all);
  const part = (heads: number, first: number): HostTensor => {
    const view = {
      ...whole,
      dims: [tokens, heads, D],
      strides: [(N + 2 * KV) * D, D, 1],
      offset: first * D,
    };
    if (shape.fused) return view;
    const values = Array.from({ length: tokens * heads * D }, (_, i) => {
      const t = Math.floor(i / (heads * D));
      return all[(t * (N + 2 * KV) + first) * D + (i % (heads * D))] as number;
    });
    return hostTensor([tokens, heads, D], values);
  };
  const starts: number[] = [];
  let next = unused;
  for (const [queries] of sequences) {
    starts.push(next);
    next += queries;
  }
  const needed = sequences.map(([, context]) => Math.ceil(context / block));
  const columns = Math.max(1, ...needed);
  const blocks = needed.reduce((a, b) => a + b, 0) + 3;
  const order = [...Array(blocks).keys()].sort((a, b) => ((a * 7919) % 101) - ((b * 7919) % 101));
  const tables = sequences.flatMap((_, s) =>
    Array.from({ length: columns }, (_, i) => (i < (needed[s] as number) ? (order.pop() as number) : -1)),
  );
  const pool = (): HostTensor => {
    if (cache === 'int8') {
      const rows = Array.from({ length: blocks * KV * block }, () => int8CacheRow(r.normals(D).map(Math.fround)));
      return hostTensor([blocks, KV, block, D + 4], rows.flat(), { dtype: 'int8' });
    }
    const made = floats(r, [blocks, KV, block, D], { dtype: cache as DType });
    if (!shape.bfloat16) return made;
    const rounded = hostValues(made).map((x) => roundTo('bfloat16', x));
    return hostTensor(made.dims, rounded, { dtype: cache as DType });
  };
  const list = (values: number[]): HostTensor => ints([sequences.length], values);
  return {
    inputs: [
      part(N, 0),
      part(KV, N),
      part(KV, N + KV),
      cache === undefined ? null : pool(),
      cache === undefined ? null : pool(),
      list(starts),
      list(sequences.map(([queries]) => queries)),
      list(sequences.map(([, context]) => context)),
      cache === undefined ? null : ints([sequences.length, columns], tables),
      shape.alibi
        ? hostTensor(
            [N],
            Array.from({ length: N }, (_, i) => 2 ** -(i + 1)),
          )
        : null,
    ],
    outputs: [emptyHost([tokens, N, D])],
    attributes: [1 / Math.sqrt(D), causal, window, softcap, shape.bfloat16 ? 1 : 0],
  };
}

/**
 * Rounding the softmax weights to bfloat16 moves each by up to 2^-8 of itself; where the scale is no power of 2, rounding the scaled queries moves scores,
 * too, by some thousandths of their size.
 */
const bfloat16Tolerance = (D: number): number => (Math.log2(D) % 2 === 0 ? 4e-3 : 2e-2);

export function addAttention(add: AddCase): void {
  const shapes: [string, AttentionShape][] = [
    ['one token', { N: 1, KV: 1, D: 1, sequences: [[1, 1]] }],
    [
      'no cache, causal',
      {
        N: 4,
        KV: 4,
        D: 16,
        sequences: [
          [5, 5],
          [1, 1],
          [0, 0],
          [40, 40],
        ],
      },
    ],
    [
      'no cache, bidirectional',
      {
        N: 4,
        KV: 2,
        D: 24,
        causal: 0,
        sequences: [
          [33, 33],
          [7, 7],
        ],
      },
    ],
    ['prefill over tiles', { N: 2, KV: 1, D: 32, cache: 'float32', sequences: [[150, 150]] }],
    [
      'prefill after a context',
      {
        N: 4,
        KV: 2,
        D: 64,
        cache: 'float32',
        sequences: [
          [70, 133],
          [3, 67],
        ],
      },
    ],
    [
      'decode batch',
      {
        N: 8,
        KV: 2,
        D: 64,
        cache: 'float32',
        fused: true,
        sequences: [
          [1, 1],
          [1, 130],
          [0, 0],
          [1, 77],
        ],
      },
    ],
    [
      'decode, split context',
      {
        N: 2,
        KV: 2,
        D: 16,
        cache: 'float32',
        sequences: [
          [1, 1500],
          [1, 512],
          [1, 513],
        ],
      },
    ],
    ['decode, split context, window', { N: 2, KV: 1, D: 16, cache: 'float32', window: 700, sequences: [[1, 1400]] }],
    [
      'float16 cache',
      {
        N: 4,
        KV: 2,
        D: 32,
        cache: 'float16',
        sequences: [
          [20, 50],
          [1, 40],
        ],
      },
    ],
    [
      'bfloat16 cache',
      {
        N: 4,
        KV: 2,
        D: 40,
        cache: 'bfloat16',
        fused: true,
        sequences: [
          [9, 50],
          [1, 40],
        ],
      },
    ],
    [
      'odd head size',
      {
        N: 6,
        KV: 3,
        D: 13,
        cache: 'float32',
        sequences: [
          [20, 50],
          [1, 40],
        ],
      },
    ],
    [
      'head size 80',
      {
        N: 2,
        KV: 2,
        D: 80,
        cache: 'float32',
        sequences: [
          [40, 90],
          [1, 40],
        ],
      },
    ],
    [
      'head size 320',
      {
        N: 2,
        KV: 1,
        D: 320,
        cache: 'float32',
        sequences: [
          [20, 70],
          [1, 40],
        ],
      },
    ],
    ['block size 5', { N: 2, KV: 2, D: 16, cache: 'float32', block: 5, sequences: [[20, 53]] }],
    [
      'window',
      {
        N: 4,
        KV: 2,
        D: 16,
        cache: 'float32',
        window: 9,
        sequences: [
          [70, 150],
          [1, 40],
          [1, 3],
        ],
      },
    ],
    ['window of 1', { N: 2, KV: 2, D: 16, window: 1, sequences: [[30, 30]] }],
    ['window, bidirectional', { N: 2, KV: 2, D: 16, causal: 0, window: 4, sequences: [[80, 80]] }],
    [
      'softcap',
      {
        N: 2,
        KV: 1,
        D: 32,
        cache: 'float32',
        softcap: 2,
        sequences: [
          [40, 70],
          [1, 40],
        ],
      },
    ],
    [
      'ALiBi',
      {
        N: 8,
        KV: 8,
        D: 16,
        cache: 'float32',
        alibi: true,
        fused: true,
        sequences: [
          [40, 70],
          [1, 600],
        ],
      },
    ],
    [
      'many heads a kv head',
      {
        N: 71,
        KV: 1,
        D: 16,
        cache: 'float32',
        sequences: [
          [3, 20],
          [1, 40],
        ],
      },
    ],
    ['a NaN later', { N: 4, KV: 4, D: 32, nan: true, sequences: [[90, 90]] }],
    [
      'a NaN later, cached',
      {
        N: 4,
        KV: 2,
        D: 32,
        nan: true,
        cache: 'float32',
        sequences: [
          [1, 9],
          [25, 60],
        ],
      },
    ],
    ['no sequences', { N: 4, KV: 2, D: 32, cache: 'float32', sequences: [] }],
  ];
  for (const [name, shape] of shapes) {
    add('attention', name, 3e-6, (r) => attentionCase(r, shape));
    const bfloat16 = { ...shape, bfloat16: true };
    add('attention', `${name}, bfloat16`, bfloat16Tolerance(shape.D), (r) => attentionCase(r, bfloat16));
  }
}

/** Caches of 8 bits, which the CPU backend has and the CUDA backend does not. */
export function addInt8Caches(add: AddCase): void {
  const shapes: [string, AttentionShape][] = [
    [
      'int8 cache',
      {
        N: 4,
        KV: 2,
        D: 64,
        cache: 'int8',
        alibi: true,
        sequences: [
          [70, 133],
          [1, 40],
        ],
      },
    ],
    [
      'int8 cache, odd head size',
      {
        N: 6,
        KV: 1,
        D: 13,
        cache: 'int8',
        block: 5,
        sequences: [
          [9, 50],
          [1, 600],
        ],
      },
    ],
    ['int8 cache, a NaN later', { N: 2, KV: 2, D: 32, cache: 'int8', nan: true, sequences: [[25, 60]] }],
  ];
  for (const [name, shape] of shapes) {
    add('attention', name, 3e-6, (r) => attentionCase(r, shape));
    add('attention', `${name}, bfloat16`, 2e-2, (r) => attentionCase(r, { ...shape, bfloat16: true }));
  }
}
