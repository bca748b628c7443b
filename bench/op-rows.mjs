/**
 * What bench/ops.mjs times: for every op realistic sizes, its inputs in device memory, and what it cannot do faster
 * than. Correctness of the ops is the test's case table (test/op-cases.ts), whose sizes are too small to time.
 *
 * A row is { name, op, build(stage), operations?, unit?, bytes?, floor? }: `operations` counts multiplications and
 * additions, `unit` says which peak they are held to (int8 or float), `bytes` what must pass from or to memory.
 * `floor: false` where the tensors stay in the cache, so that memory's speed says nothing. `build` returns a list of
 * alternatives (op calls one after another); runs take turns, so that weights come from memory and not from the cache.
 */
import { ACTIVATION_KINDS, DTYPES, KV_BLOCK_SIZE, native, packedInt8Bytes, specBytes } from 'metashard';
import { outlierColumns, random } from './stage.mjs';

const THRESHOLD = 6;

const rows = [];
const add = (op, name, row) => rows.push({ op, name, ...row });

/** [N, K]: a small layer's, OPT-6.7B's attention and first MLP linear, Llama 1.1B's down projection. */
const MATRICES = [
  [1024, 1024],
  [4096, 4096],
  [16384, 4096],
  [2048, 5632],
];
const ROWS = [1, 8, 512];

function quantizeCall(stage, x) {
  const [T, K] = x.dims;
  const outputs = [stage.tensor([T, K], 'int8'), stage.tensor([T]), stage.tensor([K + 1], 'int32')];
  return { outputs, quantize: stage.call('int8_quantize', [x], outputs, [THRESHOLD, 0]) };
}

for (const [N, K] of MATRICES) {
  for (const T of ROWS) {
    const size = {
      operations: 2 * T * N * K,
      unit: 'int8',
      bytes: packedInt8Bytes(N, K) + 4 * N,
      outliers: outlierColumns(K),
    };
    const build = (alone) => (stage) => {
      const x = stage.activations(T, K);
      const { outputs, quantize } = quantizeCall(stage, x);
      const { CB, SCB } = stage.int8Weight(N, K);
      const out = stage.tensor([T, N]);
      quantize();
      return stage.rotate(CB).map((copy) => {
        const linear = stage.call('int8_linear', [x, ...outputs, copy, SCB, null], [out], [THRESHOLD, 0]);
        return alone ? [linear] : [quantize, linear];
      });
    };
    add('int8_linear', `int8_linear ${N}×${K}, ${T} rows`, { ...size, build: build(true) });
    add('int8_linear', `int8_quantize + int8_linear ${N}×${K}, ${T} rows`, { ...size, build: build(false) });
  }
}

function addLinear(N, K, T, dtype) {
  const bytes = N * K * DTYPES[dtype].bytes;
  add('linear', `linear ${dtype} ${N}×${K}, ${T} rows`, {
    operations: 2 * T * N * K,
    unit: 'float',
    bytes,
    build: (stage) => {
      const [x, out] = [stage.normal([T, K]), stage.tensor([T, N])];
      return stage
        .rotate(stage.normal([N, K], dtype, 0.02), bytes)
        .map((weight) => [stage.call('linear', [x, weight, null], [out])]);
    },
  });
}
for (const [N, K] of MATRICES) for (const T of ROWS) addLinear(N, K, T, 'float16');
for (const dtype of ['float32', 'bfloat16']) for (const T of ROWS) addLinear(4096, 4096, T, dtype);
for (const T of [1, 8]) addLinear(250880, 1024, T, 'float16');

for (const T of ROWS) {
  add('int8_weight_linear', `int8_weight_linear 4096×4096, ${T} rows`, {
    operations: 2 * T * 4096 * 4096,
    unit: 'float',
    bytes: packedInt8Bytes(4096, 4096) + 4 * 4096,
    build: (stage) => {
      const [x, out] = [stage.normal([T, 4096]), stage.tensor([T, 4096])];
      const { CB, SCB } = stage.int8Weight(4096, 4096);
      return stage.rotate(CB).map((copy) => [stage.call('int8_weight_linear', [x, copy, SCB, null], [out], [0])]);
    },
  });
}

add('int8_matmul', 'int8_matmul 4096×4096, 512 rows', {
  operations: 2 * 512 * 4096 * 4096,
  unit: 'int8',
  bytes: packedInt8Bytes(4096, 4096),
  build: (stage) => {
    const { outputs, quantize } = quantizeCall(stage, stage.normal([512, 4096]));
    quantize();
    const { CB } = stage.int8Weight(4096, 4096);
    return [[stage.call('int8_matmul', [outputs[0], CB], [stage.tensor([512, 4096], 'int32')])]];
  },
});

for (const T of ROWS) {
  add('int8_quantize', `int8_quantize [${T}, 4096]`, {
    bytes: T * 4096 * 5,
    floor: false,
    build: (stage) => [[quantizeCall(stage, stage.activations(T, 4096)).quantize]],
  });
}

/** Llama 1.1B's heads and BLOOM-560M's, [heads, kv heads, head size, ALiBi]. */
const HEADS = { llama: [32, 4, 64, false], bloom: [16, 16, 64, true] };

/** Of one position of one kv head: behind int8 values lies their scale. */
const cacheRowBytes = (D, dtype) => D * DTYPES[dtype].bytes + (dtype === 'int8' ? 4 : 0);

function attentionCalls(
  stage,
  [N, KV, D, alibi],
  { sequences, queries, context, cacheDtype = 'float32', bfloat16 = 0 },
) {
  const T = sequences * queries;
  const blocks = Math.ceil(context / KV_BLOCK_SIZE);
  const [q, k, v, out] = [
    stage.normal([T, N, D]),
    stage.normal([T, KV, D]),
    stage.normal([T, KV, D]),
    stage.tensor([T, N, D]),
  ];
  const each = (value) => stage.ints(Array(sequences).fill(value));
  const starts = stage.ints(Array.from({ length: sequences }, (_, s) => s * queries));
  const tables = stage.ints(
    Array.from({ length: sequences * blocks }, (_, i) => i),
    [sequences, blocks],
  );
  const slopes = alibi ? stage.floats(Array.from({ length: N }, (_, h) => 2 ** (-(8 * (h + 1)) / N))) : null;
  const shape = [sequences * blocks, KV, KV_BLOCK_SIZE, cacheRowBytes(D, cacheDtype) / DTYPES[cacheDtype].bytes];
  const cache = cacheDtype === 'int8' ? stage.zeros(shape, 'int8') : stage.normal(shape, cacheDtype);
  return stage.rotate(cache, 2 * specBytes(cache)).map((keys) => {
    const values = stage.tensor(keys.dims, keys.dtype);
    native().copy(values.buffer, 0, keys.buffer, 0, specBytes(keys));
    const inputs = [q, k, v, keys, values, starts, each(queries), each(context), tables, slopes];
    return [stage.call('attention', inputs, [out], [1 / Math.sqrt(D), 1, 0, 0, bfloat16])];
  });
}

for (const [model, heads] of Object.entries(HEADS)) {
  const [N, KV, D] = heads;
  for (const cacheDtype of ['float32', 'bfloat16', 'int8']) {
    const kept = cacheDtype === 'float32' ? '' : `, ${cacheDtype} cache`;
    for (const [sequences, context] of [
      [1, 2048],
      [8, 512],
      [8, 48],
    ]) {
      add('attention', `attention ${model}, ${sequences} new tokens of ${sequences} sequences over ${context}${kept}`, {
        operations: 4 * sequences * context * N * D,
        unit: 'float',
        bytes: 2 * sequences * context * KV * cacheRowBytes(D, cacheDtype),
        build: (stage) => attentionCalls(stage, heads, { sequences, queries: 1, context, cacheDtype }),
      });
    }
  }
  add('attention', `attention ${model}, a prompt of 512`, {
    operations: 2 * 512 * 513 * N * D,
    unit: 'float',
    bytes: 512 * D * (2 * N + 4 * KV) * 4,
    build: (stage) => attentionCalls(stage, heads, { sequences: 1, queries: 512, context: 512 }).slice(0, 4),
  });
  add('attention', `attention ${model}, a prompt of 512 in bfloat16`, {
    operations: 2 * 512 * 513 * N * D,
    unit: 'float',
    bytes: 512 * D * (2 * N + 3 * KV) * 4,
    build: (stage) => {
      const prompt = { sequences: 1, queries: 512, context: 512, cacheDtype: 'bfloat16', bfloat16: 1 };
      return attentionCalls(stage, heads, prompt).slice(0, 4);
    },
  });
}

for (const T of [1, 512]) {
  const inCache = (bytes, build) => ({ bytes, floor: false, build: (stage) => [[build(stage)]] });
  const H = 4096;
  const norm = (op, bias) =>
    inCache(T * H * 8, (s) =>
      s.call(
        op,
        [s.normal([T, H]), s.normal([H], 'float16'), ...(bias ? [s.normal([H], 'float16')] : [])],
        [s.tensor([T, H])],
        [1e-5],
      ),
    );
  add('layer_norm', `layer_norm [${T}, ${H}]`, norm('layer_norm', true));
  add('rms_norm', `rms_norm [${T}, ${H}]`, norm('rms_norm', false));
  for (const op of ['add', 'mul']) {
    add(
      op,
      `${op} [${T}, ${H}]`,
      inCache(T * H * 12, (s) => s.call(op, [s.normal([T, H]), s.normal([T, H])], [s.tensor([T, H])])),
    );
  }
  for (const kind of ['gelu_tanh', 'silu']) {
    const build = (s) => s.call('activation', [s.normal([T, H])], [s.tensor([T, H])], [ACTIVATION_KINDS.indexOf(kind)]);
    add('activation', `${kind} [${T}, ${H}]`, inCache(T * H * 8, build));
  }
  const rope = (s) =>
    s.call('rope', [s.normal([T, 32, 64]), s.normal([T, 32]), s.normal([T, 32])], [s.tensor([T, 32, 64])], [0]);
  add('rope', `rope [${T}, 32, 64]`, inCache(T * 2048 * 8, rope));
  const positions = Array.from({ length: T }, (_, t) => t);
  const table = (s) =>
    s.call('rope_table', [s.ints(positions), s.normal([32])], [s.tensor([T, 32]), s.tensor([T, 32])], [1]);
  add('rope_table', `rope_table [${T}, 32]`, inCache(T * 256, table));
}
add('select_rows', 'select_rows 8 of [512, 4096]', {
  bytes: 8 * 4096 * 8,
  floor: false,
  build: (s) => [
    [
      s.call(
        'select_rows',
        [s.normal([512, 4096]), s.ints([...Array(8).keys()].map((i) => i * 64))],
        [s.tensor([8, 4096])],
      ),
    ],
  ],
});

const VOCABULARY = 250880;
const randomIds = (stage) => stage.ints(Array.from({ length: 512 }, () => Math.floor(random() * VOCABULARY)));

add('embedding', `embedding float16 [${VOCABULARY}, 1024], 512 ids`, {
  bytes: 512 * 1024 * 6,
  build: (stage) => {
    const [table, out] = [stage.normal([VOCABULARY, 1024], 'float16'), stage.tensor([512, 1024])];
    return Array.from({ length: 64 }, () => [stage.call('embedding', [randomIds(stage), table], [out])]);
  },
});
add('int8_embedding', `int8_embedding [${VOCABULARY}, 1024], 512 ids`, {
  bytes: 512 * 1024 * 5,
  build: (stage) => {
    const [{ CB, SCB }, out] = [stage.int8Weight(VOCABULARY, 1024), stage.tensor([512, 1024])];
    return Array.from({ length: 64 }, () => [stage.call('int8_embedding', [randomIds(stage), CB, SCB], [out])]);
  },
});

for (const R of [1, 8]) {
  const V = VOCABULARY;
  add('argmax', `argmax [${R}, ${V}]`, {
    bytes: R * V * 4,
    floor: false,
    build: (s) => [[s.call('argmax', [s.normal([R, V])], [s.tensor([R], 'int32')])]],
  });
  add('sample', `sample [${R}, ${V}], top_k 50, top_p 0.9`, {
    bytes: R * V * 4,
    floor: false,
    build: (s) => {
      const parameters = s.floats(Array(R).fill([0.8, 50, 0.9, 1]).flat(), [R, 4]);
      const inputs = [
        s.normal([R, V]),
        parameters,
        s.floats(Array(R).fill(0.5)),
        s.ints(Array(R).fill(0), [R, 1]),
        s.ints(Array(R).fill(0)),
      ];
      return [[s.call('sample', inputs, [s.tensor([R], 'int32')])]];
    },
  });
}

const SQUARE = [4096, 4096];
const COUNT = 4096 * 4096;

/**
 * Ops on a weight [4096, 4096] as it is loaded or saved, out of the cache. Outputs are one for all, touched by the
 * warm-up: first touches of fresh memory are the system's time and not the op's. `bytes` are read and written, of
 * quantize_weight read.
 */
function addConversion(op, name, bytes, { source, inputs = () => [], outputs, attributes = [] }) {
  add(op, `${name} [4096, 4096]`, {
    bytes,
    build: (stage) => {
      const [rest, out] = [inputs(stage), outputs(stage)];
      const alternatives = stage
        .rotate(source(stage))
        .map((weight) => [stage.call(op, [weight, ...rest], out, attributes)]);
      alternatives[0][0]();
      return alternatives;
    },
  });
}
const float16 = (stage) => stage.normal(SQUARE, 'float16', 0.02);
const packed = (stage) => stage.int8Weight(4096, 4096).CB;
const square = (dtype, layout) => (stage) => [stage.tensor(SQUARE, dtype, layout)];
addConversion('quantize_weight', 'quantize_weight float16 → packed int8', COUNT * 2, {
  source: float16,
  outputs: (stage) => [stage.tensor(SQUARE, 'int8', 'packed_int8'), stage.tensor([4096])],
  attributes: [0],
});
addConversion('dequantize_weight', 'dequantize_weight packed int8 → float32', COUNT * 5, {
  source: packed,
  inputs: (stage) => [stage.normal([4096])],
  outputs: square('float32'),
});
addConversion('cast', 'cast float16 → float32', COUNT * 6, { source: float16, outputs: square('float32') });
addConversion('copy', 'copy float16', COUNT * 4, { source: float16, outputs: square('float16') });
addConversion('unpack_int8', 'unpack_int8', COUNT * 2, { source: packed, outputs: square('int8') });
addConversion('pack_int8', 'pack_int8', COUNT * 2, {
  source: (stage) => stage.zeros(SQUARE, 'int8'),
  outputs: square('int8', 'packed_int8'),
});

export const OP_ROWS = rows;
