// Scaled dot-product attention of a ragged batch over a paged KV cache: writes the new keys and values, then runs tiles of
// (sequence, kv head, query heads, query tokens). A tile of a single token with a long context is split into runs of positions
// whose unfinished sums are merged afterwards (as in flash-decoding). How work is cut depends on a sequence's own sizes alone.
// The inner loop is isa/attention_run.h.
#include <math.h>

#include <algorithm>
#include <vector>

#include "ops/op.h"

namespace {

constexpr uint32_t any_cache = any_float | dtype_bit(MS_INT8);
constexpr int64_t positions_per_run = 512;
constexpr int64_t wanted_runs = 128;  // of one sequence in decode, over all kv heads; bounds the memory of unfinished sums

struct attention_call {
  operand q, k, v, cache_k, cache_v, query_starts, query_lengths, context_lengths, block_tables, slopes, out;
  float scale, softcap;
  bool causal, bfloat16;
  int64_t window;
  int64_t tokens, N, D, KV, sequences;
};

void read_cache(const op_arguments &arguments, attention_call &call) {
  call.cache_k = arguments.optional(3, "cache_k", 4, any_cache);  // [blocks, KV, block_size, D], of int8 D + 4
  call.cache_v = arguments.optional(4, "cache_v", 4, any_cache);
  call.block_tables = arguments.optional(8, "block_tables", 2, i32_only);  // [sequences, blocks of the longest]
  EXPECT(call.cache_k.present == call.cache_v.present, "attention: expected both caches or none, got one");
  if (!call.cache_k.present) return;
  EXPECT(call.block_tables.present, "attention: expected block_tables with a cache, got none");
  const int64_t width = call.cache_k.dtype == MS_INT8 ? call.D + int64_t(sizeof(float)) : call.D;
  arguments.shape(call.cache_k, "cache_k", {call.cache_k.shape[0], call.KV, call.cache_k.shape[2], width});
  arguments.same_shape(call.cache_v, "cache_v", call.cache_k);
  EXPECT(call.cache_v.dtype == call.cache_k.dtype, "attention: expected cache_v of the dtype of cache_k (code %d), got code %d",
         call.cache_k.dtype, call.cache_v.dtype);
  EXPECT(call.cache_k.shape[2] > 0, "attention: expected cache blocks of at least 1 position, got 0");
  EXPECT(call.block_tables.shape[0] == call.sequences, "attention: expected block_tables of %lld sequences, got %lld",
         (long long)call.sequences, (long long)call.block_tables.shape[0]);
  arguments.unit_stride(call.cache_k, "cache_k");
  arguments.unit_stride(call.cache_v, "cache_v");
  arguments.unit_stride(call.block_tables, "block_tables");
}

void read_attributes(const op_arguments &arguments, attention_call &call) {
  call.scale = float(arguments.attribute(0));
  call.causal = arguments.attribute(1) != 0;
  const double window = arguments.attribute(2), softcap = arguments.attribute(3);
  EXPECT(window >= 0 && window == floor(window), "attention: expected a window of 0 or a number of positions, got %g", window);
  EXPECT(softcap >= 0, "attention: expected a softcap of at least 0, got %g", softcap);
  call.window = window < 9e15 ? int64_t(window) : 0;
  call.softcap = float(softcap);
  call.bfloat16 = arguments.attribute(4) != 0;
}

attention_call read(const op_arguments &arguments) {
  attention_call call;
  call.q = arguments.input(0, "q", 3, f32_only);  // [tokens, N, D]
  call.k = arguments.input(1, "k", 3, f32_only);  // [tokens, KV, D]
  call.v = arguments.input(2, "v", 3, f32_only);
  call.query_starts = arguments.input(5, "query_starts", 1, i32_only);
  call.query_lengths = arguments.input(6, "query_lengths", 1, i32_only);
  call.context_lengths = arguments.input(7, "context_lengths", 1, i32_only);
  call.slopes = arguments.optional(9, "alibi_slopes", 1, f32_only);
  call.out = arguments.output(0, "out", 3, f32_only);
  call.tokens = call.q.shape[0];
  call.N = call.q.shape[1];
  call.D = call.q.shape[2];
  call.KV = call.k.shape[1];
  call.sequences = call.query_starts.shape[0];
  arguments.shape(call.k, "k", {call.tokens, call.KV, call.D});
  arguments.same_shape(call.v, "v", call.k);
  arguments.same_shape(call.out, "out", call.q);
  arguments.shape(call.query_lengths, "query_lengths", {call.sequences});
  arguments.shape(call.context_lengths, "context_lengths", {call.sequences});
  if (call.slopes.present) arguments.shape(call.slopes, "alibi_slopes", {call.N});
  const operand *unit[] = {&call.q,     &call.k, &call.v, &call.query_starts, &call.query_lengths, &call.context_lengths,
                           &call.slopes};
  for (const operand *tensor : unit) {
    if (tensor->present) arguments.unit_stride(*tensor, "every input");
  }
  EXPECT(call.KV > 0 && call.N % call.KV == 0, "attention: expected a number of heads that %lld kv heads divide, got %lld",
         (long long)call.KV, (long long)call.N);
  EXPECT(call.D > 0 && call.D <= attention_largest_D, "attention: expected a head size of 1 to %lld, got %lld",
         (long long)attention_largest_D, (long long)call.D);
  read_cache(arguments, call);
  read_attributes(arguments, call);
  return call;
}

struct sequence {
  int64_t start, queries, context;
  const int32_t *blocks;  // NULL without cache
};

sequence sequence_of(const attention_call &call, int64_t s) {
  const int32_t *blocks = call.cache_k.present ? call.block_tables.as<int32_t>() + s * call.block_tables.stride[0] : nullptr;
  return {call.query_starts.as<int32_t>()[s], call.query_lengths.as<int32_t>()[s], call.context_lengths.as<int32_t>()[s],
          blocks};
}

void check_sequence(const attention_call &call, const sequence &q, int64_t s) {
  EXPECT(q.queries >= 0 && q.start >= 0 && q.start + q.queries <= call.tokens,
         "attention: expected rows of sequence %lld within %lld tokens, got %lld from %lld on", (long long)s,
         (long long)call.tokens, (long long)q.queries, (long long)q.start);
  EXPECT(q.context >= q.queries, "attention: expected a context of at least %lld positions for sequence %lld, got %lld",
         (long long)q.queries, (long long)s, (long long)q.context);
  if (q.blocks == nullptr) {
    EXPECT(q.context == q.queries, "attention: expected a context of %lld positions without cache, got %lld",
           (long long)q.queries, (long long)q.context);
    return;
  }
  const int64_t block_size = call.cache_k.shape[2], needed = (q.context + block_size - 1) / block_size;
  EXPECT(needed <= call.block_tables.shape[1], "attention: expected block_tables of at least %lld columns, got %lld",
         (long long)needed, (long long)call.block_tables.shape[1]);
  for (int64_t b = 0; b < needed; b++) {
    EXPECT(q.blocks[b] >= 0 && q.blocks[b] < call.cache_k.shape[0],
           "attention: expected blocks from 0 to %lld for sequence %lld, got %d", (long long)(call.cache_k.shape[0] - 1),
           (long long)s, q.blocks[b]);
  }
}

char *cache_row(const operand &cache, int64_t block, int64_t kv_head, int64_t row) {
  return cache.data + (block * cache.stride[0] + kv_head * cache.stride[1] + row * cache.stride[2]) * dtype_bytes(cache.dtype);
}

void write_row(const attention_call &call, char *to, const float *row, const vector_ops &vectors) {
  if (call.cache_k.dtype == MS_INT8) vectors.quantize_row(to, row, call.D);
  else vectors.from_float32(to, call.cache_k.dtype, row, call.D);
}

// Keys and values of the call into their blocks, in the cache's dtype.
void write_cache(const attention_call &call, const sequence &q, const vector_ops &vectors) {
  const int64_t block_size = call.cache_k.shape[2];
  parallel_rows(q.queries, 2 * call.KV * call.D, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) {
      const int64_t position = q.context - q.queries + t, block = q.blocks[position / block_size], row = position % block_size;
      for (int64_t h = 0; h < call.KV; h++) {
        const float *k = call.k.as<float>() + (q.start + t) * call.k.stride[0] + h * call.k.stride[1];
        const float *v = call.v.as<float>() + (q.start + t) * call.v.stride[0] + h * call.v.stride[1];
        write_row(call, cache_row(call.cache_k, block, h, row), k, vectors);
        write_row(call, cache_row(call.cache_v, block, h, row), v, vectors);
      }
    }
  });
}

kv_rows rows_of(const operand &cache, const operand &fresh, const sequence &q, int64_t kv_head) {
  if (cache.present) {
    const int64_t bytes = dtype_bytes(cache.dtype);
    return {cache_row(cache, 0, kv_head, 0), cache.stride[2] * bytes, cache.stride[0] * bytes};
  }
  return {reinterpret_cast<const char *>(fresh.as<float>() + q.start * fresh.stride[0] + kv_head * fresh.stride[1]),
          fresh.stride[0] * int64_t(sizeof(float)), 0};
}

// How one sequence's work is cut.
struct cutting {
  int64_t heads_per_tile, head_tiles, tokens_per_tile, token_tiles;
  int64_t runs, run_length;  // more than one run only for a single token
  int64_t tasks;             // KV · head_tiles · token_tiles · runs
};

cutting cut(const attention_call &call, const sequence &q) {
  cutting c;
  const int64_t group = call.N / call.KV, rows = attention_tile_rows(call.D);
  c.head_tiles = (group + rows - 1) / rows;
  c.heads_per_tile = (group + c.head_tiles - 1) / c.head_tiles;
  c.head_tiles = (group + c.heads_per_tile - 1) / c.heads_per_tile;
  c.tokens_per_tile = std::max<int64_t>(1, rows / c.heads_per_tile);
  c.token_tiles = (q.queries + c.tokens_per_tile - 1) / c.tokens_per_tile;
  const int64_t seen = call.window > 0 ? std::min(q.context, call.window + q.queries - 1) : q.context;
  const int64_t most_runs = q.queries == 1 ? std::max<int64_t>(1, wanted_runs / (call.KV * c.head_tiles)) : 1;
  const int64_t steps = (seen + positions_per_run - 1) / positions_per_run;
  c.run_length = std::max<int64_t>(1, (steps + most_runs - 1) / most_runs) * positions_per_run;
  c.runs = most_runs == 1 ? 1 : (seen + c.run_length - 1) / c.run_length;
  c.tasks = call.KV * c.head_tiles * c.token_tiles * c.runs;
  return c;
}

// One task: `index` counts tasks of its sequence; `partial` is where the sequence's unfinished sums lie, if it has several
// runs.
attention_tile tile_of(const attention_call &call, const sequence &q, const cutting &c, int64_t index, float *partial) {
  // The last tokens see most: their tiles go first, so that what is left for the last thread is short.
  const int64_t run = index % c.runs, token_tile = c.token_tiles - 1 - index / c.runs % c.token_tiles;
  const int64_t head_tile = index / c.runs / c.token_tiles % c.head_tiles,
                kv_head = index / c.runs / c.token_tiles / c.head_tiles;
  const int64_t group = call.N / call.KV, token = token_tile * c.tokens_per_tile, in_group = head_tile * c.heads_per_tile;
  const int64_t head = kv_head * group + in_group;
  attention_tile t = {};
  t.q = call.q.as<float>() + (q.start + token) * call.q.stride[0] + head * call.q.stride[1];
  t.q_token_stride = call.q.stride[0];
  t.q_head_stride = call.q.stride[1];
  t.out = call.out.as<float>() + (q.start + token) * call.out.stride[0] + head * call.out.stride[1];
  t.out_token_stride = call.out.stride[0];
  t.out_head_stride = call.out.stride[1];
  t.tokens = std::min(c.tokens_per_tile, q.queries - token);
  t.heads = std::min(c.heads_per_tile, group - in_group);
  t.D = call.D;
  t.first_position = q.context - q.queries + token;
  t.keys_begin = call.window > 0 ? std::max<int64_t>(0, t.first_position - call.window + 1) : 0;
  t.keys_end = call.causal ? t.first_position + t.tokens : q.context;
  if (c.runs > 1) {
    t.keys_begin += run * c.run_length;
    t.keys_end = std::min(t.keys_end, t.keys_begin + c.run_length);
    t.partial = partial + (run * call.N + head) * (call.D + 2);
  }
  t.k = rows_of(call.cache_k, call.k, q, kv_head);
  t.v = rows_of(call.cache_v, call.v, q, kv_head);
  t.block_table = q.blocks;
  t.block_size = call.cache_k.present ? call.cache_k.shape[2] : 0;
  t.slopes = call.slopes.present ? call.slopes.as<float>() + head : nullptr;
  t.scale = call.scale;
  t.softcap = call.softcap;
  t.window = call.window;
  t.kv_dtype = call.cache_k.present ? call.cache_k.dtype : MS_FLOAT32;
  t.causal = call.causal;
  return t;
}

// out of one head of one token from the unfinished sums of its runs, `step` floats apart: each is brought to the largest
// base of all.
void merge_runs(float *out, const float *partial, int64_t step, int64_t runs, int64_t D) {
  float largest = -INFINITY;
  for (int64_t r = 0; r < runs; r++) largest = std::max(largest, partial[r * step + D]);
  const float base = largest == -INFINITY ? 0.0f : largest;
  float weight = 0;
  for (int64_t d = 0; d < D; d++) out[d] = 0;
  for (int64_t r = 0; r < runs; r++) {
    const float *run = partial + r * step, share = expf(run[D] - base);
    weight += run[D + 1] * share;
    for (int64_t d = 0; d < D; d++) out[d] += run[d] * share;
  }
  const float inverse = 1.0f / weight;  // no weight at all, all scores -infinity: NaN
  for (int64_t d = 0; d < D; d++) out[d] *= inverse;
}

// All sequences as one list of tasks.
struct schedule {
  std::vector<sequence> sequences;
  std::vector<cutting> cuttings;
  std::vector<int64_t> first_task;      // one more than sequences
  std::vector<int64_t> partial_floats;  // where a sequence's unfinished sums begin, one more than sequences
};

schedule plan(const attention_call &call) {
  schedule work;
  work.first_task.push_back(0);
  work.partial_floats.push_back(0);
  for (int64_t s = 0; s < call.sequences; s++) {
    const sequence q = sequence_of(call, s);
    check_sequence(call, q, s);
    if (q.queries == 0) continue;
    const cutting c = cut(call, q);
    work.sequences.push_back(q);
    work.cuttings.push_back(c);
    work.first_task.push_back(work.first_task.back() + c.tasks);
    work.partial_floats.push_back(work.partial_floats.back() + (c.runs > 1 ? c.runs * call.N * (call.D + 2) : 0));
  }
  return work;
}

void merge_all(const attention_call &call, const schedule &work, const float *partial) {
  for (size_t s = 0; s < work.sequences.size(); s++) {
    const cutting &c = work.cuttings[s];
    if (c.runs == 1) continue;
    for (int64_t head = 0; head < call.N; head++) {
      float *out = call.out.as<float>() + work.sequences[s].start * call.out.stride[0] + head * call.out.stride[1];
      merge_runs(out, partial + work.partial_floats[s] + head * (call.D + 2), call.N * (call.D + 2), c.runs, call.D);
    }
  }
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const attention_call call = read(arguments);
  const schedule work = plan(call);
  if (call.cache_k.present) {
    for (const sequence &q : work.sequences) write_cache(call, q, *isa.vectors);
  }
  // ops.ts gives attention no scratch; the unfinished sums (at most 128 runs a sequence, plus one a head) stay with the calling
  // thread.
  thread_local std::vector<float> partial;
  partial.resize(size_t(work.partial_floats.back()));
  float *unfinished = partial.data();
  const auto attend =
      call.bfloat16 && isa.kernels.attention_bfloat16 != nullptr ? isa.kernels.attention_bfloat16 : isa.vectors->attention;
  parallel(work.first_task.back(), [&](int64_t task) {
    const auto after = std::upper_bound(work.first_task.begin(), work.first_task.end(), task);
    const size_t s = size_t(after - work.first_task.begin()) - 1;
    const attention_tile tile =
        tile_of(call, work.sequences[s], work.cuttings[s], task - work.first_task[s], unfinished + work.partial_floats[s]);
    attend(&tile);
  });
  merge_all(call, work, unfinished);
}

}  // namespace

const op_definition op_attention = {scratch, run};
