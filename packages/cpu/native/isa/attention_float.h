// The float32 product of attention. Keys and values are read once per tile: in place where they are float32 and whole vectors
// long, else converted into the workspace. Some query rows: keys are transposed, so that scores are a small matrix product; few
// (decode): dot products straight from the cache. A query row never touches the values of positions it does not see, so that
// what is in them (NaN, a later token) cannot reach it.
#pragma once
#include <type_traits>

#include "isa/attention_state.h"

namespace {

constexpr int64_t transposing_rows = 6;

// Rows of B in a product: at a stride, or listed.
struct strided_rows {
  const float *first;
  int64_t stride;
  const float *at(int64_t k) const { return first + k * stride; }
};
struct listed_rows {
  const char *const *rows;
  const float *at(int64_t k) const { return (const float *)rows[k]; }
};
// Those, and the rows to prefetch meanwhile, line by line.
struct streamed_rows {
  const char *const *rows, *const *ahead;
  const float *at(int64_t k) const { return (const float *)rows[k]; }
};
// Transposed keys, and the rows to prefetch meanwhile: of `column` … those LANES, piece by piece with k.
struct streamed_keys {
  const float *first;
  int64_t stride;
  const char *const *ahead;
  int64_t element_bytes;
  const float *at(int64_t k) const { return first + k * stride; }
};
// One step of a product; for rows of pairs it is another one (avx512/attention_bfloat16.cc).
template <typename Rows>
inline vfloat product_step(const Rows &, vfloat sum, vfloat a, vfloat b) {
  return sum + a * b;
}
template <typename Rows>
inline void prefetch_ahead(const Rows &, int64_t, int64_t) {}
inline void prefetch_ahead(const streamed_keys &B, int64_t k, int64_t column) {
  __builtin_prefetch(B.ahead[column + k % LANES] + k / LANES * LANES * B.element_bytes, 0, 3);
}
inline void prefetch_ahead(const streamed_rows &B, int64_t k, int64_t column) {
  __builtin_prefetch(B.ahead[k] + column * 4, 0, 3);
}

// C[m, column …] (+)= sum over k of A[m, k] · B[k, column …] for ROWS rows and VECTORS vectors, kept in registers.
template <bool ADD, int ROWS, int VECTORS, typename Rows>
NOT_INLINE void product_block(const float *A, int64_t A_stride, Rows B, int64_t first, int64_t end, int64_t column, float *C,
                              int64_t C_stride) {
  vfloat c[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; m++) {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) c[m][v] = ADD ? load(C + m * C_stride + column + v * LANES) : vfloat{};
  }
  for (int64_t k = first; k < end; k++) {
    const float *b = B.at(k) + column;
    vfloat row[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
      row[v] = load(b + v * LANES);
      prefetch_ahead(B, k, column + v * LANES);
    }
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; m++) {
      const vfloat a = splat(A[m * A_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) c[m][v] = product_step(B, c[m][v], a, row[v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; m++) {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) store(C + m * C_stride + column + v * LANES, c[m][v]);
  }
}

// The same over all `columns` (a multiple of LANES), in as many vectors at once as the registers hold.
template <bool ADD, int ROWS, typename Rows>
inline void product_rows(const float *A, int64_t A_stride, Rows B, int64_t first, int64_t end, int64_t columns, float *C,
                         int64_t C_stride) {
  constexpr int WIDE = ROWS >= 4 ? 2 : ROWS == 2 ? 4 : 8;
  int64_t column = 0;
  for (; column + WIDE * LANES <= columns; column += WIDE * LANES) {
    product_block<ADD, ROWS, WIDE>(A, A_stride, B, first, end, column, C, C_stride);
  }
  if constexpr (WIDE == 8) {
    for (; column + 4 * LANES <= columns; column += 4 * LANES) {
      product_block<ADD, ROWS, 4>(A, A_stride, B, first, end, column, C, C_stride);
    }
  }
  for (; column < columns; column += LANES) product_block<ADD, ROWS, 1>(A, A_stride, B, first, end, column, C, C_stride);
}

constexpr int most_rows = LANES == 16 ? 8 : 6;  // times two vectors: what 32 or 16 registers hold

// How many rows the next product takes of those left.
inline int rows_at_once(int64_t left) { return left >= most_rows ? most_rows : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

template <bool ADD, typename Rows>
inline void product(int rows, const float *A, int64_t A_stride, Rows B, int64_t first, int64_t end, int64_t columns, float *C,
                    int64_t C_stride) {
  if (rows == most_rows) return product_rows<ADD, most_rows>(A, A_stride, B, first, end, columns, C, C_stride);
  if (rows == 4) return product_rows<ADD, 4>(A, A_stride, B, first, end, columns, C, C_stride);
  if (rows == 2) return product_rows<ADD, 2>(A, A_stride, B, first, end, columns, C, C_stride);
  product_rows<ADD, 1>(A, A_stride, B, first, end, columns, C, C_stride);
}

// LANES × LANES in registers: each round interleaves the two halves, log2(LANES) rounds transpose.
inline void transpose(vfloat v[LANES]) {
#if defined(__AVX512F__)
  const vint low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  const vint high = low + 8;
#elif defined(__AVX2__)
  const vint low = {0, 8, 1, 9, 2, 10, 3, 11};
  const vint high = {4, 12, 5, 13, 6, 14, 7, 15};
#else
  const vint low = {0, 4, 1, 5};
  const vint high = {2, 6, 3, 7};
#endif
#pragma GCC unroll 4
  for (int round = 1; round < LANES; round *= 2) {
    vfloat next[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < HALF; i++) {
      next[2 * i] = __builtin_shuffle(v[i], v[i + HALF], low);
      next[2 * i + 1] = __builtin_shuffle(v[i], v[i + HALF], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) v[i] = next[i];
  }
}

inline bool in_place(const tile_state &s) { return s.t->kv_dtype == MS_FLOAT32 && s.padded_D == s.t->D; }

// Rows as float32, padded to whole vectors, at `to`; `rows` then points there.
template <int32_t DTYPE>
NOT_INLINE void convert_rows(const tile_state &s, int64_t n, const char **rows, const char *const *ahead, float *to) {
  for (int64_t j = 0; j < n; j++, to += s.padded_D) {
    for (int64_t d = 0; d < s.padded_D; d += LANES) {
      store(to + d, load_row(rows[j], DTYPE, d, s.t->D));
      prefetch_element(ahead[j], DTYPE, d);
    }
    rows[j] = (const char *)to;
  }
}

// [n, D] → [D, keys_per_tile]; keys past n repeat the last.
template <int32_t DTYPE>
NOT_INLINE void transpose_keys(const tile_state &s, int64_t n) {
  for (int64_t key = 0; key < n; key += LANES) {
    const char *const *rows = s.now->k + key;
    for (int64_t d = 0; d < s.padded_D; d += LANES) {
      vfloat v[LANES];
      if (d + LANES <= s.t->D) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) v[i] = load_whole(rows[i], DTYPE, d, s.t->D);
      } else {
#pragma GCC unroll 1
        for (int i = 0; i < LANES; i++) v[i] = load_row(rows[i], DTYPE, d, s.t->D);
      }
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) store(s.keys + (d + i) * s.keys_per_tile + key, v[i]);
    }
  }
}

// f(integral_constant of the dtype): code of its own for each dtype of cached rows.
template <class Function>
inline void by_kv_dtype(int32_t dtype, Function f) {
  switch (dtype) {
    case MS_FLOAT16: return f(std::integral_constant<int32_t, MS_FLOAT16>());
    case MS_BFLOAT16: return f(std::integral_constant<int32_t, MS_BFLOAT16>());
    case MS_INT8: return f(std::integral_constant<int32_t, MS_INT8>());
    default: return f(std::integral_constant<int32_t, MS_FLOAT32>());
  }
}

// scores[m, j] = q[m] · k[j] for ROWS query rows and 4 keys at a time: few rows, so the keys are the stream.
template <int ROWS, int KEYS>  // KEYS 4 or 1
inline void dots(tile_state &s, const float *q, int64_t key, float *scores) {
  vfloat c[ROWS][KEYS] = {};
  for (int64_t d = 0; d < s.padded_D; d += LANES) {
    vfloat k[KEYS];
#pragma GCC unroll 4
    for (int j = 0; j < KEYS; j++) {
      k[j] = load((const float *)s.now->k[key + j] + d);
      __builtin_prefetch((const float *)s.ahead->k[key + j] + d, 0, 3);
    }
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; m++) {
      const vfloat row = load(q + m * s.padded_D + d);
#pragma GCC unroll 4
      for (int j = 0; j < KEYS; j++) c[m][j] += row * k[j];
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < ROWS; m++) {
    float *to = scores + m * s.keys_per_tile + key;
    if constexpr (KEYS == 4) store_sums_of_four(to, c[m]);
    else to[0] = sum_of_lanes(c[m][0]);
  }
}

template <int ROWS>
NOT_INLINE void dots_of_rows(tile_state &s, const float *q, int64_t n, float *scores) {
  int64_t key = 0;
  for (; key + 4 <= n; key += 4) dots<ROWS, 4>(s, q, key, scores);
  for (; key < n; key++) dots<ROWS, 1>(s, q, key, scores);
}

// sums[row …] += weights · values: together where all `count` rows see a position, singly at the edges of the mask.
template <typename Rows>
inline void add_seen_values(tile_state &s, int64_t row, int count, const Rows &values, const seen_range *seen) {
  int64_t first = seen[0].from, end = seen[0].to;
  for (int m = 1; m < count; m++) {
    first = seen[m].from > first ? seen[m].from : first;
    end = seen[m].to < end ? seen[m].to : end;
  }
  const int64_t stride = s.keys_per_tile, width = s.padded_D;
  float *scores = s.scores, *sums = s.sums + row * s.sums_stride;
  if (first < end) product<true>(count, scores, stride, values, first, end, width, sums, s.sums_stride);
  for (int m = 0; m < count; m++, scores += stride, sums += s.sums_stride) {
    const int64_t a = seen[m].from, b = seen[m].to, middle = first < end ? first : b, rest = first < end ? end : b;
    if (a < middle) product<true>(1, scores, stride, values, a, middle, width, sums, s.sums_stride);
    if (rest < b) product<true>(1, scores, stride, values, rest, b, width, sums, s.sums_stride);
  }
}

struct float_product {
  bool transposes;

  void start(tile_state &s) {
    transposes = s.rows >= transposing_rows && s.keys_per_tile >= LANES;
    for (int64_t row = 0; row < s.rows; row++) {
      const float *q = query_row(s, row);
      float *to = s.q + row * s.padded_D;
      for (int64_t d = 0; d < s.padded_D; d += LANES) {
        store(to + d, load_row((const char *)q, MS_FLOAT32, d, s.t->D) * s.t->scale);
      }
    }
  }

  void take_keys(tile_state &s, int64_t n) {
    if (!transposes && in_place(s)) return;
    by_kv_dtype(s.t->kv_dtype, [&](auto dtype) {
      if (transposes) transpose_keys<dtype>(s, n);
      else convert_rows<dtype>(s, n, s.now->k, s.ahead->k, s.keys);
    });
  }
  void take_values(tile_state &s, int64_t n) {
    if (in_place(s)) return;
    by_kv_dtype(s.t->kv_dtype, [&](auto dtype) { convert_rows<dtype>(s, n, s.now->v, s.ahead->v, s.values); });
  }

  int rows_at_once(int64_t left) const { return ::rows_at_once(left); }

  void scores(tile_state &s, int64_t row, int count, int64_t columns) {
    const float *q = s.q + row * s.padded_D;
    if (transposes) {
      const strided_rows keys = {s.keys, s.keys_per_tile};
      const int64_t whole = (columns + LANES - 1) / LANES * LANES;
      const streamed_keys stream = {s.keys, s.keys_per_tile, s.ahead->k, kv_element_bytes(s.t->kv_dtype)};
      if (row == 0) return product<false>(count, q, s.padded_D, stream, 0, s.t->D, whole, s.scores, s.keys_per_tile);
      return product<false>(count, q, s.padded_D, keys, 0, s.t->D, whole, s.scores, s.keys_per_tile);
    }
    for (int m = 0; m < count; m += 2) {
      float *to = s.scores + m * s.keys_per_tile;
      if (count - m == 1) dots_of_rows<1>(s, q, columns, to);
      else dots_of_rows<2>(s, q + m * s.padded_D, columns, to);
    }
  }

  void add_values(tile_state &s, int64_t row, int count, const seen_range *seen, bool first_block) {
    const bool streams = first_block && in_place(s);
    if (streams) add_seen_values(s, row, count, streamed_rows{s.now->v, s.ahead->v}, seen);
    else add_seen_values(s, row, count, listed_rows{s.now->v}, seen);
  }
};

}  // namespace
