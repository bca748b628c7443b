// One tile of attention while it runs: its workspace, where its rows of keys and values lie, and the online softmax in float32
// (Milakov & Gimelshein 2018). How scores and weighted values are multiplied is a product's business (attention_float.h,
// attention_bfloat16.h); how a product is driven over the positions is in attention_run.h.
#pragma once
#include "isa/vectors.h"
#include "pool.h"
#include "vector_ops.h"

namespace {

// Keeps the large loops apart, in the code and in profiles.
#define NOT_INLINE __attribute__((noinline))

constexpr int64_t most_block_rows = 32;  // query rows that go through scores, softmax and values together

// Addresses of the rows of a tile's positions.
struct row_lists {
  const char *k[attention_most_keys], *v[attention_most_keys];
};

struct tile_state {
  const attention_tile *t;
  int64_t rows, padded_D;  // padded_D: D up to whole vectors
  int64_t keys_per_tile;
  int64_t sums_stride;  // padded_D and a vector more
  float *q;             // [rows, padded_D], times scale
  float *sums;          // [rows, sums_stride]: weighted values so far, in the last vector the lanes of the sum of weights
  float *keys;          // [padded_D, keys_per_tile] transposed, or [keys_per_tile, padded_D] converted
  float *values;        // [keys_per_tile, padded_D] converted
  row_lists lists[2];
  row_lists *now, *ahead;                                            // of this tile and of the next one, which is prefetched
  int64_t first_seen[attention_most_rows], end_seen[attention_most_rows];  // positions per query row
  float base[attention_most_rows];                                         // of the softmax
  alignas(64) float scores[most_block_rows * attention_most_keys];   // [block rows, keys_per_tile]
};

// What a row sees of the tile's positions.
struct seen_range {
  int64_t from, to;
};

inline int64_t kv_element_bytes(int32_t dtype) { return dtype == MS_FLOAT32 ? 4 : dtype == MS_INT8 ? 1 : 2; }

inline void prefetch_element(const char *row, int32_t dtype, int64_t d) {
  __builtin_prefetch(row + d * kv_element_bytes(dtype), 0, 3);
}

inline float row_scale(const char *row, int64_t D) {
  float scale;
  memcpy(&scale, row + D, sizeof scale);
  return scale;
}

// Elements d … of a key or value row, all of them within it.
inline vfloat load_whole(const char *row, int32_t dtype, int64_t d, int64_t D) {
  return dtype == MS_INT8 ? load_int8((const int8_t *)row + d) * row_scale(row, D) : load_any(row, dtype, d);
}

// Elements d … of a key or value row, zeros from D on.
inline vfloat load_row(const char *row, int32_t dtype, int64_t d, int64_t D) {
  if (d + LANES <= D) return load_whole(row, dtype, d, D);
  float some[LANES] = {};
  for (int64_t i = d; i < D; i++) {
    some[i - d] = dtype == MS_INT8 ? ((const int8_t *)row)[i] * row_scale(row, D) : load_float(row, dtype, i);
  }
  return load(some);
}

// Addresses of `n` rows from position `key` on.
NOT_INLINE void list_rows(const attention_tile &t, const kv_rows &source, int64_t key, int64_t n, const char **rows) {
  for (int64_t j = 0; j < n;) {
    const char *row = source.base + (key + j) * source.row_bytes;
    int64_t end = n;
    if (t.block_table != nullptr) {
      const int64_t block = (key + j) / t.block_size, offset = (key + j) % t.block_size;
      row = source.base + t.block_table[block] * source.block_bytes + offset * source.row_bytes;
      end = j + t.block_size - offset < n ? j + t.block_size - offset : n;
    }
    for (; j < end; j++, row += source.row_bytes) rows[j] = row;
  }
}

// Lists the rows of a tile from position `key` on, all keys_per_tile of them: the last one again behind the end.
inline void list_tile(const tile_state &s, int64_t key, row_lists &lists) {
  const int64_t left = s.t->keys_end - key, n = left < s.keys_per_tile ? left : s.keys_per_tile;
  list_rows(*s.t, s.t->k, key, n, lists.k);
  list_rows(*s.t, s.t->v, key, n, lists.v);
  for (int64_t j = n; j < s.keys_per_tile; j++) {
    lists.k[j] = lists.k[n - 1];
    lists.v[j] = lists.v[n - 1];
  }
}

NOT_INLINE void start_tile(tile_state &s, const attention_tile *t, float *workspace) {
  s.t = t;
  s.rows = t->tokens * t->heads;
  s.padded_D = (t->D + LANES - 1) / LANES * LANES;
  s.keys_per_tile = attention_tile_keys(t->D);
  s.sums_stride = s.padded_D + LANES;
  const int64_t room = s.rows < 16 ? s.rows : (s.rows + 15) / 16 * 16;  // whole tiles of 16 rows
  s.q = workspace;
  s.sums = s.q + room * s.padded_D;
  s.keys = s.sums + room * s.sums_stride;
  s.values = s.keys + s.keys_per_tile * s.padded_D;
  memset(s.sums, 0, (size_t)(s.rows * s.sums_stride) * 4);
  for (int64_t row = 0; row < s.rows; row++) {
    const int64_t position = t->first_position + row / t->heads;
    s.first_seen[row] = t->window > 0 && position - t->window + 1 > 0 ? position - t->window + 1 : 0;
    s.end_seen[row] = t->causal != 0 ? position + 1 : t->keys_end;
    s.base[row] = -__builtin_inff();
  }
}

inline const float *query_row(const tile_state &s, int64_t row) {
  const attention_tile &t = *s.t;
  return t.q + row / t.heads * t.q_token_stride + row % t.heads * t.q_head_stride;
}
inline float *out_row(const tile_state &s, int64_t row) {
  const attention_tile &t = *s.t;
  return t.out + row / t.heads * t.out_token_stride + row % t.heads * t.out_head_stride;
}

// Tokens lie far apart: without this, each row of the queries and, at the end, of the output is waited for.
NOT_INLINE void prefetch_rows(const tile_state &s) {
  for (int64_t row = 0; row < s.rows; row++) {
    const float *q = query_row(s, row), *out = out_row(s, row);
    for (int64_t d = 0; d < s.t->D; d += 16) __builtin_prefetch(q + d, 0, 3);
    if (s.t->partial != nullptr) continue;
    for (int64_t d = 0; d < s.t->D; d += 16) __builtin_prefetch(out + d, 1, 3);
  }
}

// Moves the base of a row to `base` and scales down what was summed before.
NOT_INLINE void move_base(tile_state &s, int64_t row, float base) {
  float *sums = s.sums + row * s.sums_stride;
  if (s.base[row] != -__builtin_inff()) {  // else all that was summed is 0 or NaN
    const vfloat shrink = exponential(splat(s.base[row] - base));
    for (int64_t d = 0; d < s.sums_stride; d += LANES) store(sums + d, load(sums + d) * shrink);
  }
  s.base[row] = base;
}

// scores = adjust(scores, j) over what a row sees. Returns, lane by lane, the largest.
template <typename Adjust>
inline vfloat adjust_scores(float *scores, seen_range seen, const Adjust &adjust) {
  const float lowest = -__builtin_inff();
  vfloat top = splat(lowest);
  int64_t j = seen.from;
  for (; j + LANES <= seen.to; j += LANES) {
    const vfloat adjusted = adjust(load(scores + j), j);
    store(scores + j, adjusted);
    top = larger(adjusted, top);
  }
  if (j < seen.to) {
    store_some(scores + j, adjust(load_some(scores + j, seen.to - j), j), seen.to - j);
    top = larger(load_some(scores + j, seen.to - j, lowest), top);
  }
  return top;
}

inline vfloat largest_scores(const float *scores, seen_range seen) {
  const float lowest = -__builtin_inff();
  vfloat top = splat(lowest);
  int64_t j = seen.from;
  for (; j + LANES <= seen.to; j += LANES) top = larger(load(scores + j), top);
  return j < seen.to ? larger(load_some(scores + j, seen.to - j, lowest), top) : top;
}

// softcap, then ALiBi, as ops.ts orders them, where the tile has them. Returns, lane by lane, the largest score that results.
inline vfloat finish_scores(const tile_state &s, int64_t row, int64_t key, seen_range seen, float *scores) {
  const attention_tile &t = *s.t;
  if (t.softcap == 0 && t.slopes == nullptr) return largest_scores(scores, seen);
  float lanes[LANES];
  for (int i = 0; i < LANES; i++) lanes[i] = (float)i;
  const float slope = t.slopes == nullptr ? 0.0f : t.slopes[row % t.heads];
  const vfloat distance = load(lanes) + (float)(key - t.first_position - row / t.heads);
  const auto biased = [&](vfloat v, int64_t j) { return v + slope * (distance + (float)j); };
  if (t.softcap == 0) return adjust_scores(scores, seen, biased);
  const float inverse = 1.0f / t.softcap;
  return adjust_scores(scores, seen, [&](vfloat v, int64_t j) {
    const vfloat capped = t.softcap * hyperbolic_tangent(v * inverse);
    return t.slopes == nullptr ? capped : biased(capped, j);
  });
}

// The scores of what a row sees become softmax weights e^(score - base), and what was summed before is scaled down where the
// base moves: to the largest score, once one is far above it. Below, weights of up to e^8 do no harm, and the rows that move
// are few. A NaN among the scores makes the row NaN. While all scores are -infinity the weights are 0.
inline void weigh_scores(tile_state &s, int64_t row, int64_t key, seen_range seen, float *scores) {
  const float lowest = -__builtin_inff(), far = 8;
  const vfloat top = finish_scores(s, row, key, seen, scores);
  if (any(top > s.base[row] + far)) move_base(s, row, largest_lane(top));
  const vfloat base = splat(s.base[row] == lowest ? 0.0f : s.base[row]);
  float *sums = s.sums + row * s.sums_stride + s.padded_D;
  vfloat total = load(sums);
  int64_t j = seen.from;
  for (; j + LANES <= seen.to; j += LANES) {
    const vfloat weights = exponential(load(scores + j) - base);
    store(scores + j, weights);
    total += weights;
  }
  if (j < seen.to) {
    const vfloat weights = exponential(load_some(scores + j, seen.to - j, lowest) - base);
    store_some(scores + j, weights, seen.to - j);
    total += weights;
  }
  store(sums, total);
}

NOT_INLINE void finish_tile(const tile_state &s) {
  const attention_tile &t = *s.t;
  for (int64_t row = 0; row < s.rows; row++) {
    const float *sums = s.sums + row * s.sums_stride;
    const float weight = sum_of_lanes(load(sums + s.padded_D));
    if (t.partial != nullptr) {
      float *to = t.partial + row * (t.D + 2);
      memcpy(to, sums, (size_t)t.D * 4);
      to[t.D] = s.base[row];
      to[t.D + 1] = weight;
      continue;
    }
    float *to = out_row(s, row);
    const float inverse = 1.0f / weight;  // no weight at all, all scores -infinity: NaN
    int64_t d = 0;
    for (; d + LANES <= t.D; d += LANES) store(to + d, load(sums + d) * inverse);
    for (; d < t.D; d++) to[d] = sums[d] * inverse;
  }
}

}  // namespace
