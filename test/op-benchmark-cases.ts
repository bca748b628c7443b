/**
 * Cases of the op table at the sizes of real models, for benchmarks: what an op reads and computes is stated, so that a row can say GB/s and
 * TFLOPS. Built like any other case (op-case.ts), hence checked against the reference too where someone has the patience.
 */
import type { DType } from '@metashard/core';
import { emptyHost, hostTensor } from './host-tensor.js';
import { type AddCase, bytes, caseGroup, floats, ints, type OpCase, positive } from './op-case.js';
import { type AttentionShape, attentionCase } from './op-cases-attention.js';

export interface BenchmarkCase extends OpCase {
  /** Bytes that have to come from memory: weights or caches. */
  readonly bytes: number;
  /** Multiplications and additions. */
  readonly operations: number;
}

interface Costs {
  bytes: number;
  operations: number;
}
type AddBenchmark = (costs: Costs, ...added: Parameters<AddCase>) => void;

const ROWS = [1, 8, 512];

function addProducts(add: AddBenchmark, K: number, N: number): void {
  for (const rows of ROWS) {
    const operations = 2 * rows * K * N;
    for (const dtype of ['float32', 'bfloat16'] as DType[]) {
      add(
        { bytes: K * N * (dtype === 'float32' ? 4 : 2), operations },
        'linear',
        `${rows} × ${K} → ${N} ${dtype}`,
        2e-6,
        (r) => ({
          inputs: [floats(r, [rows, K]), floats(r, [N, K], { dtype }, 0.02), null],
          outputs: [emptyHost([rows, N])],
          attributes: [],
        }),
      );
    }
    add({ bytes: K * N, operations }, 'int8_linear', `${rows} × ${K} → ${N}, 7 outlier columns`, 1e-6, (r) => {
      const columns = Array.from({ length: 7 }, (_, i) => Math.floor(((i + 0.5) * K) / 7));
      return {
        inputs: [
          floats(r, [rows, K]),
          bytes(r, [rows, K]),
          positive(r, rows),
          ints([K + 1], [7, ...columns, ...Array(K - 7).fill(0)]),
          bytes(r, [N, K], { layout: 'packed_int8' }),
          positive(r, N),
          null,
        ],
        outputs: [emptyHost([rows, N])],
        attributes: [6, 0],
      };
    });
  }
}

function addAttention(add: AddBenchmark): void {
  const shapes: [string, Omit<AttentionShape, 'cache' | 'fused'>][] = [
    ['prefill 512, 16 heads of 64', { N: 16, KV: 16, D: 64, sequences: [[512, 512]] }],
    ['prefill 512, 32 heads of 64 on 4', { N: 32, KV: 4, D: 64, sequences: [[512, 512]] }],
    ['decode at 512, 16 heads of 64', { N: 16, KV: 16, D: 64, sequences: [[1, 512]] }],
    ['decode at 2048, 32 heads of 64 on 4', { N: 32, KV: 4, D: 64, sequences: [[1, 2048]] }],
    ['decode 8 at 512, 16 heads of 64', { N: 16, KV: 16, D: 64, sequences: Array(8).fill([1, 512]) }],
  ];
  for (const [name, shape] of shapes) {
    const { N, KV, D, sequences } = shape;
    const seen = sequences.reduce((sum, [n, context]) => sum + n * (context - n) + (n * (n + 1)) / 2, 0);
    const positions = sequences.reduce((sum, [, context]) => sum + context, 0);
    add({ bytes: 2 * KV * D * positions * 4, operations: 4 * N * D * seen }, 'attention', name, 3e-6, (r) =>
      attentionCase(r, { ...shape, cache: 'float32', fused: true }),
    );
  }
}

function addRows(add: AddBenchmark, H: number): void {
  for (const rows of ROWS) {
    const count = rows * H;
    const costs = (operands: number): Costs => ({ bytes: count * 4 * operands, operations: count });
    add(costs(2), 'layer_norm', `${rows} × ${H}`, 3e-7, (r) => ({
      inputs: [floats(r, [rows, H]), floats(r, [H]), floats(r, [H])],
      outputs: [emptyHost([rows, H])],
      attributes: [1e-5],
    }));
    add(costs(2), 'rms_norm', `${rows} × ${H}`, 3e-7, (r) => ({
      inputs: [floats(r, [rows, H]), floats(r, [H])],
      outputs: [emptyHost([rows, H])],
      attributes: [1e-5],
    }));
    add(costs(2), 'activation', `gelu_tanh ${rows} × ${H}`, 2e-6, (r) => ({
      inputs: [floats(r, [rows, H])],
      outputs: [emptyHost([rows, H])],
      attributes: [2],
    }));
    add(costs(3), 'add', `${rows} × ${H}`, 0, (r) => ({
      inputs: [floats(r, [rows, H]), floats(r, [rows, H])],
      outputs: [emptyHost([rows, H])],
      attributes: [],
    }));
    add(costs(1), 'int8_quantize', `${rows} × ${H} threshold 6`, 0, (r) => ({
      inputs: [floats(r, [rows, H])],
      outputs: [emptyHost([rows, H], { dtype: 'int8' }), emptyHost([rows]), emptyHost([H + 1], { dtype: 'int32' })],
      attributes: [6, 0],
    }));
  }
}

function addChoice(add: AddBenchmark, V: number): void {
  add({ bytes: V * 4, operations: V }, 'argmax', `of ${V}`, 0, (r) => ({
    inputs: [floats(r, [1, V])],
    outputs: [emptyHost([1], { dtype: 'int32' })],
    attributes: [],
  }));
  add({ bytes: V * 4, operations: V }, 'sample', `top_p 0.9 of ${V}`, 0, (r) => ({
    inputs: [
      floats(r, [1, V], {}, 3),
      hostTensor([1, 4], [0.8, 0, 0.9, 1]),
      hostTensor([1], [0.5]),
      ints([1, 1], [0]),
      ints([1], [0]),
    ],
    outputs: [emptyHost([1], { dtype: 'int32' })],
    attributes: [],
  }));
}

/** Benchmark rows of every op that matters to the speed of a model, in a fixed order. */
export function benchmarkCases(): BenchmarkCase[] {
  const costs: Costs[] = [];
  const cases = caseGroup(1, (add) => {
    const addBenchmark: AddBenchmark = (cost, ...added) => {
      costs.push(cost);
      add(...added);
    };
    addProducts(addBenchmark, 4096, 4096);
    addProducts(addBenchmark, 1024, 4096);
    addAttention(addBenchmark);
    addRows(addBenchmark, 4096);
    addChoice(addBenchmark, 250_880);
  });
  return cases.map((item, i) => ({ ...item, ...(costs[i] as Costs) }));
}
