// Scaled dot-product attention of a ragged batch over a paged KV cache, in two launches: the call's keys and values go into
// their blocks, then a block of threads takes a few tokens of one sequence and some heads that share a kv head, and goes over
// the key positions tile by tile with an online softmax in float32 (Milakov & Gimelshein 2018; tiled as Dao et al. 2022). A
// query row never touches the values of positions it does not see, so that what is in them (NaN, a later token) cannot reach
// it. The host cannot see lengths and tables without waiting for the device: a sequence whose numbers do not fit the tensors
// gets NaN and writes no cache; a block outside the cache reads as NaN.
#include "float_types.h"
#include "reduce.h"

namespace {

struct Sequence {
  int32_t start, queries, context;
  const int32_t *blocks;  // null without cache
};

SIMT_DEVICE Sequence sequence_of(const ms_attention_call &call, int s) {
  const int32_t *blocks = call.cache_k == nullptr ? nullptr : call.block_tables + s * call.table_stride;
  return {call.query_starts[s], call.query_lengths[s], call.context_lengths[s], blocks};
}

SIMT_DEVICE bool fits(const ms_attention_call &call, const Sequence &q) {
  if (q.start < 0 || static_cast<int64_t>(q.start) + q.queries > call.tokens || q.context < q.queries) return false;
  if (q.blocks == nullptr) return q.context == q.queries;
  return q.context <= call.table_columns * call.block_size;
}

// First element of a cache row, in elements; -1 where the table names no block of the cache.
SIMT_DEVICE int64_t cache_row(const ms_attention_call &call, const int64_t (&stride)[3], const Sequence &q, int position,
                              int kv_head) {
  const int block = q.blocks[position / call.block_size], row = position % call.block_size;
  if (block < 0 || block >= call.blocks) return -1;
  return block * stride[0] + kv_head * stride[1] + row * stride[2];
}

// ---- one block of ms_attention: its query rows, (token, head) pairs with the heads side by side, and its shared memory

struct Tile {
  Sequence sequence;
  int first_token;  // within the sequence
  int tokens, first_head, heads, kv_head;
  int rows;  // tokens · heads
};

struct TileMemory {
  float *q;           // [rows][D], times scale
  float *sums;        // [rows][D] weighted values so far
  float *keys;        // [keys_per_tile][padded D], then the values of the same positions
  float *scores;      // [rows][keys_per_tile]
  float *largest;     // [rows] score so far
  float *weight;      // [rows] sum of exponentials so far
  float *correction;  // [rows] of the sums so far, when `largest` has grown
};

SIMT_DEVICE int padded(int D) { return D | 1; }  // an odd stride keeps rows in different banks

SIMT_DEVICE TileMemory memory_of(const ms_attention_call &call, unsigned char *shared) {
  const int rows = call.heads_per_tile * call.tokens_per_tile;
  TileMemory memory;
  memory.q = reinterpret_cast<float *>(shared);
  memory.sums = memory.q + rows * call.D;
  memory.keys = memory.sums + rows * call.D;
  memory.scores = memory.keys + call.keys_per_tile * padded(call.D);
  memory.largest = memory.scores + rows * call.keys_per_tile;
  memory.weight = memory.largest + rows;
  memory.correction = memory.weight + rows;
  return memory;
}

// Which sequence block blockIdx.x works on, and which of its token tiles: tiles are counted through all sequences.
// Thread 0 looks; found = {sequence, tile}, sequence -1 beyond the last.
SIMT_DEVICE void find_tile(const ms_attention_call &call, int (&found)[2]) {
  if (threadIdx.x == 0) {
    int tile = static_cast<int>(blockIdx.x), sequence = -1;
#pragma unroll 4
    for (int s = 0; s < call.sequences; s++) {
      const int tiles = (max(call.query_lengths[s], 0) + call.tokens_per_tile - 1) / call.tokens_per_tile;
      if (sequence >= 0) continue;
      if (tile < tiles) {
        sequence = s;
      } else {
        tile -= tiles;
      }
    }
    found[0] = sequence;
    found[1] = tile;
  }
  __syncthreads();
}

SIMT_DEVICE Tile tile_of(const ms_attention_call &call, const int (&found)[2]) {
  Tile tile;
  tile.sequence = sequence_of(call, found[0]);
  tile.first_token = found[1] * call.tokens_per_tile;
  tile.tokens = min(call.tokens_per_tile, tile.sequence.queries - tile.first_token);
  const int group = call.N / call.KV, head_tiles = gridDim.y / call.KV, head_tile = blockIdx.y % head_tiles;
  tile.kv_head = blockIdx.y / head_tiles;
  tile.first_head = tile.kv_head * group + head_tile * call.heads_per_tile;
  tile.heads = min(call.heads_per_tile, group - head_tile * call.heads_per_tile);
  tile.rows = tile.tokens * tile.heads;
  return tile;
}

// Position of row r's token, and the positions it sees: first … end - 1.
struct Seen {
  int position, first, end;
};

SIMT_DEVICE Seen seen_by(const ms_attention_call &call, const Tile &tile, int row) {
  const Sequence &q = tile.sequence;
  const int position = q.context - q.queries + tile.first_token + row / tile.heads;
  const int first = call.window > 0 ? max(position - call.window + 1, 0) : 0;
  return {position, first, call.causal ? position + 1 : q.context};
}

// Of the call.
SIMT_DEVICE int64_t token_of(const Tile &tile, int row) {
  return static_cast<int64_t>(tile.sequence.start) + tile.first_token + row / tile.heads;
}

SIMT_DEVICE const float *query_row(const ms_attention_call &call, const Tile &tile, int row) {
  const int64_t token = token_of(tile, row);
  return call.q + token * call.q_stride[0] + (tile.first_head + row % tile.heads) * call.q_stride[1];
}

SIMT_DEVICE float *out_row(const ms_attention_call &call, const Tile &tile, int row) {
  const int64_t token = token_of(tile, row);
  return call.out + token * call.out_stride[0] + (tile.first_head + row % tile.heads) * call.out_stride[1];
}

SIMT_DEVICE void load_queries(const ms_attention_call &call, const Tile &tile, const TileMemory &memory) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int r = threadIdx.x / 32; r < tile.rows; r += warps) {
    const float *q = query_row(call, tile, r);
    for (int d = lane; d < call.D; d += 32) {
      memory.q[r * call.D + d] = q[d] * call.scale;
      memory.sums[r * call.D + d] = 0.0f;
    }
    if (lane == 0) {
      memory.largest[r] = -INFINITY;
      memory.weight[r] = 0.0f;
    }
  }
}

// Keys (or values) of positions key … key + count - 1 into shared memory, as float32.
SIMT_DEVICE void load_rows(const ms_attention_call &call, const Tile &tile, const void *cache, const int64_t (&cache_stride)[3],
                           const float *fresh, const int64_t (&fresh_stride)[2], int key, int count, float *to) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int j = threadIdx.x / 32; j < count; j += warps) {
    float *row = to + j * padded(call.D);
    if (cache == nullptr) {
      const int64_t token = tile.sequence.start + key + j;
      const float *from = fresh + token * fresh_stride[0] + tile.kv_head * fresh_stride[1];
      for (int d = lane; d < call.D; d += 32) row[d] = from[d];
    } else {
      const int64_t from = cache_row(call, cache_stride, tile.sequence, key + j, tile.kv_head);
      for (int d = lane; d < call.D; d += 32) row[d] = from < 0 ? NAN : load_float(cache, call.cache_dtype, from + d);
    }
  }
}

// scores[r][j] of the positions row r sees, -∞ for the others.
SIMT_DEVICE void compute_scores(const ms_attention_call &call, const Tile &tile, const TileMemory &memory, int key, int count) {
  for (int pair = threadIdx.x; pair < tile.rows * count; pair += blockDim.x) {
    const int r = pair / count, j = pair % count;
    const Seen seen = seen_by(call, tile, r);
    float score = -INFINITY;
    if (key + j >= seen.first && key + j < seen.end) {
      const float *q = memory.q + r * call.D, *k = memory.keys + j * padded(call.D);
      score = 0.0f;
      for (int d = 0; d < call.D; d++) score = ms_fma(q[d], k[d], score);
      if (call.softcap > 0.0f) score = call.softcap * tanhf(score / call.softcap);
      if (call.alibi_slopes != nullptr) {
        const float slope = call.alibi_slopes[tile.first_head + r % tile.heads];
        score += slope * static_cast<float>(key + j - seen.position);
      }
    }
    memory.scores[r * call.keys_per_tile + j] = score;
  }
}

// Scores → exponentials, and what the sums so far have to be multiplied by. A warp takes a row.
SIMT_DEVICE void advance_softmax(const ms_attention_call &call, const Tile &tile, const TileMemory &memory, int count) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int r = threadIdx.x / 32; r < tile.rows; r += warps) {
    float *scores = memory.scores + r * call.keys_per_tile;
    float largest = -INFINITY;
    for (int j = lane; j < count; j += 32) largest = fmaxf(largest, scores[j]);
    const float before = memory.largest[r], now = fmaxf(before, warp_max(largest));
    const float base = now == -INFINITY ? 0.0f : now;
    float weight = 0.0f;
    for (int j = lane; j < count; j += 32) {
      scores[j] = expf(scores[j] - base);
      weight += scores[j];
    }
    weight = warp_sum(weight);  // also: every lane has read largest[r]
    if (lane == 0) {
      const float correction = expf(before - base);
      memory.largest[r] = now;
      memory.weight[r] = memory.weight[r] * correction + weight;
      memory.correction[r] = correction;
    }
  }
}

// sums[r][d] += Σ exponential · value over the positions row r sees.
SIMT_DEVICE void add_values(const ms_attention_call &call, const Tile &tile, const TileMemory &memory, int key, int count) {
  for (int pair = threadIdx.x; pair < tile.rows * call.D; pair += blockDim.x) {
    const int r = pair / call.D, d = pair % call.D;
    const Seen seen = seen_by(call, tile, r);
    const int first = max(seen.first - key, 0), end = min(seen.end - key, count);
    const float *scores = memory.scores + r * call.keys_per_tile, *values = memory.keys + d;
    float sum = memory.sums[pair] * memory.correction[r];
    for (int j = first; j < end; j++) sum = ms_fma(scores[j], values[j * padded(call.D)], sum);
    memory.sums[pair] = sum;
  }
}

SIMT_DEVICE void store_rows(const ms_attention_call &call, const Tile &tile, const TileMemory &memory) {
  for (int pair = threadIdx.x; pair < tile.rows * call.D; pair += blockDim.x) {
    const int r = pair / call.D;
    out_row(call, tile, r)[pair % call.D] = memory.sums[pair] / memory.weight[r];
  }
}

SIMT_DEVICE void refuse_rows(const ms_attention_call &call, const Tile &tile) {
  for (int pair = threadIdx.x; pair < tile.rows * call.D; pair += blockDim.x) {
    const int r = pair / call.D;
    const int64_t token = token_of(tile, r);
    if (token >= 0 && token < call.tokens) out_row(call, tile, r)[pair % call.D] = NAN;
  }
}

}  // namespace

// A block takes one token of the call: its keys and values, in the cache's dtype, into the rows of its position.
extern "C" __global__ void __launch_bounds__(128, 1) ms_attention_write_cache(ms_attention_call call) {
  __shared__ int owner;
  const int64_t token = blockIdx.x;
  if (threadIdx.x == 0) owner = 0x7fffffff;
  __syncthreads();
  for (int s = threadIdx.x; s < call.sequences; s += blockDim.x) {
    const int64_t start = call.query_starts[s];
    if (token >= start && token < start + call.query_lengths[s]) atomicMin(&owner, s);
  }
  __syncthreads();
  if (owner == 0x7fffffff) return;
  const Sequence q = sequence_of(call, owner);
  if (!fits(call, q)) return;
  const int position = q.context - q.queries + static_cast<int>(token) - q.start;
  for (int h = threadIdx.x / 32; h < call.KV; h += blockDim.x / 32) {
    const int64_t k_row = cache_row(call, call.cache_k_stride, q, position, h);
    const int64_t v_row = cache_row(call, call.cache_v_stride, q, position, h);
    if (k_row < 0) continue;
    for (int d = threadIdx.x % 32; d < call.D; d += 32) {
      const float k = call.k[token * call.k_stride[0] + h * call.k_stride[1] + d];
      const float v = call.v[token * call.v_stride[0] + h * call.v_stride[1] + d];
      store_float(call.cache_k, call.cache_dtype, k_row + d, k);
      store_float(call.cache_v, call.cache_dtype, v_row + d, v);
    }
  }
}

extern "C" __global__ void __launch_bounds__(128, 1) ms_attention(ms_attention_call call) {
  SIMT_DYNAMIC_SHARED(smem);
  __shared__ int found[2];
  find_tile(call, found);
  if (found[0] < 0) return;
  const Tile tile = tile_of(call, found);
  if (!fits(call, tile.sequence)) return refuse_rows(call, tile);
  const TileMemory memory = memory_of(call, smem);
  load_queries(call, tile, memory);
  const int begin = seen_by(call, tile, 0).first, end = seen_by(call, tile, tile.rows - 1).end;
  for (int key = begin; key < end; key += call.keys_per_tile) {
    const int count = min(call.keys_per_tile, end - key);
    load_rows(call, tile, call.cache_k, call.cache_k_stride, call.k, call.k_stride, key, count, memory.keys);
    __syncthreads();
    compute_scores(call, tile, memory, key, count);
    __syncthreads();
    load_rows(call, tile, call.cache_v, call.cache_v_stride, call.v, call.v_stride, key, count, memory.keys);
    advance_softmax(call, tile, memory, count);
    __syncthreads();
    add_values(call, tile, memory, key, count);
    __syncthreads();
  }
  store_rows(call, tile, memory);
}
