// Scaled dot-product attention of a ragged batch over a paged KV cache: checks the call and cuts the work into blocks by sizes
// the host knows (lengths are on the device).
#include <algorithm>
#include <cmath>

#include "op.h"

namespace metashard::cuda {

namespace {

constexpr int64_t longest_D = 1024;
constexpr int64_t shared_floats = 12000;  // of the 48 KiB every GPU has; the kernel keeps two numbers more
constexpr int64_t most_rows = 16, most_keys = 128;
constexpr unsigned threads = 128;

void read_cache(const Arguments &arguments, ms_attention_call &call) {
  const Operand cache_k = arguments.optional(3, "cache_k", 4, any_float);  // [blocks, KV, block_size, D]
  const Operand cache_v = arguments.optional(4, "cache_v", 4, any_float);
  const Operand tables = arguments.optional(8, "block_tables", 2, i32_only);  // [sequences, blocks of the longest]
  EXPECT(cache_k.present == cache_v.present, "attention: expected both caches or none, got one");
  if (!cache_k.present) return;
  EXPECT(tables.present || call.sequences == 0, "attention: expected block_tables with a cache, got none");
  arguments.shape(cache_k, "cache_k", {cache_k.shape[0], call.KV, cache_k.shape[2], call.D});
  arguments.same_shape(cache_v, "cache_v", cache_k);
  EXPECT(cache_v.dtype == cache_k.dtype, "attention: expected cache_v of the dtype of cache_k (code %d), got code %d",
         cache_k.dtype, cache_v.dtype);
  EXPECT(cache_k.shape[2] > 0, "attention: expected cache blocks of at least 1 position, got 0");
  EXPECT(!tables.present || tables.shape[0] == call.sequences, "attention: expected block_tables of %d sequences, got %lld",
         call.sequences, static_cast<long long>(tables.shape[0]));
  arguments.unit_stride(cache_k, "cache_k");
  arguments.unit_stride(cache_v, "cache_v");
  if (tables.present) arguments.unit_stride(tables, "block_tables");
  call.cache_k = cache_k.data;
  call.cache_v = cache_v.data;
  call.cache_dtype = cache_k.dtype;
  call.blocks = static_cast<int32_t>(cache_k.shape[0]);
  call.block_size = static_cast<int32_t>(cache_k.shape[2]);
  std::copy_n(cache_k.stride, 3, call.cache_k_stride);
  std::copy_n(cache_v.stride, 3, call.cache_v_stride);
  call.block_tables = tables.as<int32_t>();
  call.table_columns = tables.shape[1];
  call.table_stride = tables.stride[0];
}

void read_attributes(const Arguments &arguments, ms_attention_call &call) {
  call.scale = static_cast<float>(arguments.attribute(0));
  call.causal = arguments.attribute(1) != 0;
  const double window = arguments.attribute(2), softcap = arguments.attribute(3);
  EXPECT(window >= 0 && window == std::floor(window), "attention: expected a window of 0 or a number of positions, got %g",
         window);
  EXPECT(softcap >= 0, "attention: expected a softcap of at least 0, got %g", softcap);
  call.window = window < INT32_MAX ? static_cast<int32_t>(window) : 0;  // more than there can be positions
  call.softcap = static_cast<float>(softcap);
}

// A block's rows and keys, so that its queries, sums, keys and scores fit shared memory. Of a call that has no more tokens than
// sequences (decode), a tile takes one token.
void cut(ms_attention_call &call) {
  const int64_t D = call.D, group = call.N / call.KV;
  const int64_t rows = std::clamp<int64_t>(shared_floats / (4 * D), 1, most_rows);
  const int64_t head_tiles = ceil_div(group, rows);
  call.heads_per_tile = static_cast<int32_t>(ceil_div(group, head_tiles));
  const int64_t tokens = call.tokens > call.sequences ? std::max<int64_t>(1, rows / call.heads_per_tile) : 1;
  call.tokens_per_tile = static_cast<int32_t>(tokens);
  const int64_t taken = static_cast<int64_t>(call.heads_per_tile) * call.tokens_per_tile;
  const int64_t keys = std::min((shared_floats - taken * (2 * D + 3)) / ((D | 1) + taken), most_keys);
  call.keys_per_tile = static_cast<int32_t>(keys >= 32 ? keys / 32 * 32 : keys);
}

size_t shared_bytes(const ms_attention_call &call) {
  const int64_t rows = static_cast<int64_t>(call.heads_per_tile) * call.tokens_per_tile, D = call.D;
  return static_cast<size_t>(rows * (2 * D + 3 + call.keys_per_tile) + call.keys_per_tile * (D | 1)) * sizeof(float);
}

void check_heads(int64_t N, int64_t KV, int64_t D) {
  EXPECT(KV > 0 && N % KV == 0, "attention: expected a number of heads that %lld kv heads divide, got %lld",
         static_cast<long long>(KV), static_cast<long long>(N));
  EXPECT(N <= INT32_MAX, "attention: expected at most %d heads, got %lld", INT32_MAX, static_cast<long long>(N));
  EXPECT(D > 0 && D <= longest_D, "attention: expected a head size of 1 to %lld, got %lld", static_cast<long long>(longest_D),
         static_cast<long long>(D));
}

ms_attention_call read(const Arguments &arguments) {
  const Operand q = arguments.input(0, "q", 3, f32_only);  // [tokens, N, D]
  const Operand k = arguments.input(1, "k", 3, f32_only);  // [tokens, KV, D]
  const Operand v = arguments.input(2, "v", 3, f32_only);
  const Operand starts = arguments.input(5, "query_starts", 1, i32_only);
  const Operand lengths = arguments.input(6, "query_lengths", 1, i32_only);
  const Operand contexts = arguments.input(7, "context_lengths", 1, i32_only);
  const Operand slopes = arguments.optional(9, "alibi_slopes", 1, f32_only);
  const Operand out = arguments.output(0, "out", 3, f32_only);
  const int64_t tokens = q.shape[0], N = q.shape[1], D = q.shape[2], KV = k.shape[1], sequences = starts.shape[0];
  arguments.shape(k, "k", {tokens, KV, D});
  arguments.same_shape(v, "v", k);
  arguments.same_shape(out, "out", q);
  arguments.shape(lengths, "query_lengths", {sequences});
  arguments.shape(contexts, "context_lengths", {sequences});
  if (slopes.present) arguments.shape(slopes, "alibi_slopes", {N});
  for (const Operand *tensor : {&q, &k, &v, &starts, &lengths, &contexts, &slopes}) {
    if (tensor->present) arguments.unit_stride(*tensor, "every input");
  }
  check_heads(N, KV, D);
  ms_attention_call call = {};
  call.q = q.as<float>();
  call.k = k.as<float>();
  call.v = v.as<float>();
  call.query_starts = starts.as<int32_t>();
  call.query_lengths = lengths.as<int32_t>();
  call.context_lengths = contexts.as<int32_t>();
  call.alibi_slopes = slopes.as<float>();
  call.out = out.as<float>();
  std::copy_n(q.stride, 2, call.q_stride);
  std::copy_n(k.stride, 2, call.k_stride);
  std::copy_n(v.stride, 2, call.v_stride);
  std::copy_n(out.stride, 2, call.out_stride);
  call.tokens = tokens;
  call.sequences = static_cast<int32_t>(sequences);
  call.N = static_cast<int32_t>(N);
  call.KV = static_cast<int32_t>(KV);
  call.D = static_cast<int32_t>(D);
  read_cache(arguments, call);
  read_attributes(arguments, call);
  return call;
}

void run(const Arguments &arguments, const Launcher &launcher) {
  ms_attention_call call = read(arguments);
  if (call.tokens == 0 || call.sequences == 0 || call.N == 0) return;
  cut(call);
  if (call.cache_k != nullptr) launcher.launch(launcher.kernels.ms_attention_write_cache, {call.tokens}, threads, call);
  // Every sequence may end with a tile that is not full.
  const int64_t tiles = call.tokens / call.tokens_per_tile + call.sequences;
  const int64_t head_tiles = ceil_div(call.N / call.KV, call.heads_per_tile);
  launcher.launch(launcher.kernels.ms_attention, {tiles, call.KV * head_tiles}, threads, call, shared_bytes(call));
}

}  // namespace

const OpDefinition op_attention = {no_scratch<read>, run};

}  // namespace metashard::cuda
