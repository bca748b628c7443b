// The bfloat16 product of attention, for many query rows: queries, keys, values and softmax weights are rounded to bfloat16 and
// multiplied in pairs, sums are float32; the softmax is that of isa/attention_state.h. Keys lie as pairs [D/2][keys][2], values
// as [keys/2][D][2], which is what VDPBF16PS and the B tiles of AMX both take; queries and weights row by row. Where a value is
// infinite or NaN as bfloat16, its tile of keys takes the float32 product, so that no row meets what it does not see.
#pragma once
#include <immintrin.h>

#include "isa/attention_float.h"
#include "isa/attention_run.h"

namespace {

constexpr int64_t pair_depth = 32;  // elements in a vector, and in a row of an A tile
constexpr int64_t pairs_per_vector = pair_depth / 2;
constexpr int64_t bfloat16_rows_min = 16;
constexpr int64_t bfloat16_D_max = 256;  // up to there a tile has attention_most_keys keys

inline bool takes_bfloat16(const attention_tile &t) {
  return t.tokens * t.heads >= bfloat16_rows_min && t.D <= bfloat16_D_max;
}

// float32 → bfloat16 in the upper half of each dword, round-to-nearest-even, the rest cleared; NaN stays NaN (quiet).
inline __m512i upper_bfloat16(vfloat v) {
  const __m512i word = (__m512i)bits(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(word, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  const __m512i whole = _mm512_mask_or_epi32(rounded, nan, word, _mm512_set1_epi32(0x400000));
  return _mm512_and_si512(whole, _mm512_set1_epi32((int)0xffff0000));
}

// Elements 0 … 31 of a row, from two vectors, as 16 pairs.
inline __m512i pairs_of(vfloat low, vfloat high) {
  const __m512i odd_words =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13,
                       11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_epi16(upper_bfloat16(low), odd_words, upper_bfloat16(high));
}

// Elements d … d + 31 of a key row as pairs, zeros from D on.
template <int32_t DTYPE>
inline __m512i key_pairs(const char *row, int64_t d, int64_t D) {
  if constexpr (DTYPE == MS_BFLOAT16) {
    if (d + pair_depth <= D) return _mm512_loadu_si512(row + d * 2);
  }
  const vfloat low = load_row(row, DTYPE, d, D);
  return pairs_of(low, d + LANES < D ? load_row(row, DTYPE, d + LANES, D) : vfloat{});
}

// [n, D] → [D/2][keys_per_tile][2]; keys past n repeat the last.
template <int32_t DTYPE>
NOT_INLINE void pack_key_pairs(const tile_state &s, int64_t n) {
  for (int64_t key = 0; key < n; key += LANES) {
    const char *const *rows = s.now->k + key, *const *ahead = s.ahead->k + key;
    for (int64_t d = 0; d < s.t->D; d += pair_depth) {
      vfloat v[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) {
        v[i] = (vfloat)key_pairs<DTYPE>(rows[i], d, s.t->D);
        prefetch_element(ahead[i], DTYPE, d);
      }
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) store(s.keys + (d / 2 + i) * s.keys_per_tile + key, v[i]);
    }
  }
}

// Two rows of bfloat16 as pairs of their elements d … d + 31.
inline void interleave(const char *first, const char *second, int64_t d, __m512i pairs[2]) {
  const __m512i low =
      _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2,
                       33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i a = _mm512_loadu_si512(first + d * 2), b = _mm512_loadu_si512(second + d * 2);
  pairs[0] = _mm512_permutex2var_epi16(a, low, b);
  pairs[1] = _mm512_permutex2var_epi16(a, high, b);
}

// [n, D] → [keys/2][padded_D][2], zeros from key n to a multiple of 32. Returns whether all are finite.
template <int32_t DTYPE>
NOT_INLINE bool pack_value_pairs(const tile_state &s, int64_t n) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 wild = 0;
  float *to = s.values;
  for (int64_t key = 0; key < (n + pair_depth - 1) / pair_depth * pair_depth; key += 2, to += s.padded_D) {
    int64_t d = 0;
    if constexpr (DTYPE == MS_BFLOAT16) {
      for (; key + 1 < n && d + pair_depth <= s.t->D; d += pair_depth) {
        __m512i pairs[2];
        interleave(s.now->v[key], s.now->v[key + 1], d, pairs);
        for (int i = 0; i < 2; i++) {
          wild |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(pairs[i], exponent), exponent);
          store(to + d + i * LANES, (vfloat)pairs[i]);
        }
      }
    }
    for (; d < s.padded_D; d += LANES) {
      const vfloat first = key < n ? load_row(s.now->v[key], DTYPE, d, s.t->D) : vfloat{};
      const vfloat second = key + 1 < n ? load_row(s.now->v[key + 1], DTYPE, d, s.t->D) : vfloat{};
      const __m512i pair = _mm512_or_si512(_mm512_srli_epi32(upper_bfloat16(first), 16), upper_bfloat16(second));
      wild |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(pair, exponent), exponent);
      store(to + d, (vfloat)pair);
    }
  }
  return wild == 0;
}

// `Multiply` has rows_at_once(left), pairs(low, high): 32 softmax weights rounded, as pairs_of does it, and
// sums<ADD>(rows, A, A_stride, B, B_stride, pairs, columns, C, C_stride): C (+)= A · B, where A is [rows][pairs], B
// [pairs][columns], strides in pairs or floats, pairs and columns multiples of 16. Of A and C it may touch rows up to the next
// multiple of 16.
template <class Multiply>
struct bfloat16_product {
  Multiply multiply;
  bool finite_values = true;
  alignas(64) uint32_t weights[most_block_rows * attention_most_keys / 2];  // [block rows][keys/2] pairs

  static int64_t query_stride(const tile_state &s) { return (s.t->D + pair_depth - 1) / pair_depth * pairs_per_vector; }
  uint32_t *query_pairs(const tile_state &s, int64_t row) const { return (uint32_t *)s.q + row * query_stride(s); }

  void start(tile_state &s) {
    for (int64_t row = 0; row < s.rows; row++) {
      const char *q = (const char *)query_row(s, row);
      uint32_t *to = query_pairs(s, row);
      for (int64_t d = 0; d < s.t->D; d += pair_depth, to += pairs_per_vector) {
        const vfloat low = load_row(q, MS_FLOAT32, d, s.t->D);
        const vfloat high = d + LANES < s.t->D ? load_row(q, MS_FLOAT32, d + LANES, s.t->D) : vfloat{};
        _mm512_storeu_si512(to, pairs_of(low * s.t->scale, high * s.t->scale));
      }
    }
  }

  void take_keys(tile_state &s, int64_t n) {
    by_kv_dtype(s.t->kv_dtype, [&](auto dtype) { pack_key_pairs<dtype>(s, n); });
  }
  void take_values(tile_state &s, int64_t n) {
    by_kv_dtype(s.t->kv_dtype, [&](auto dtype) { finite_values = pack_value_pairs<dtype>(s, n); });
    if (!finite_values) float_product().take_values(s, n);
  }

  int rows_at_once(int64_t left) const { return multiply.rows_at_once(left); }

  void scores(tile_state &s, int64_t row, int count, int64_t columns) {
    multiply.template sums<false>(count, query_pairs(s, row), query_stride(s), (const uint32_t *)s.keys, s.keys_per_tile,
                                  query_stride(s), (columns + LANES - 1) / LANES * LANES, s.scores, s.keys_per_tile);
  }

  // Softmax weights as pairs, zero where a row does not see. Returns the pairs of a row.
  int64_t pack_weights(const tile_state &s, int count, const seen_range *seen) {
    int64_t end = 0;
    for (int m = 0; m < count; m++) end = seen[m].to > end ? seen[m].to : end;
    for (int m = 0; m < count; m++) {
      const float *from = s.scores + m * s.keys_per_tile;
      for (int64_t key = 0; key < end; key += pair_depth) {
        const vfloat low = seen_weights(from, key, seen[m]), high = seen_weights(from, key + LANES, seen[m]);
        _mm512_storeu_si512(weights + m * attention_most_keys / 2 + key / 2, multiply.pairs(low, high));
      }
    }
    return (end + pair_depth - 1) / pair_depth * pairs_per_vector;
  }
  static vfloat seen_weights(const float *weights, int64_t key, seen_range seen) {
    const auto below = [key](int64_t position) -> uint32_t {
      return position <= key ? 0 : position >= key + LANES ? 0xffff : (1u << (position - key)) - 1;
    };
    return (vfloat)_mm512_maskz_loadu_ps((__mmask16)(below(seen.to) & ~below(seen.from)), weights + key);
  }

  void add_values(tile_state &s, int64_t row, int count, const seen_range *seen, bool) {
    if (!finite_values) return add_in_float(s, row, count, seen);
    const int64_t pairs = pack_weights(s, count, seen);
    multiply.template sums<true>(count, weights, attention_most_keys / 2, (const uint32_t *)s.values, s.padded_D, pairs,
                                 s.padded_D, s.sums + row * s.sums_stride, s.sums_stride);
  }
  // A row at a time: a block may have more rows than the float32 product takes at once.
  static void add_in_float(tile_state &s, int64_t row, int count, const seen_range *seen) {
    const listed_rows values = {s.now->v};
    for (int m = 0; m < count; m++) {
      product<true>(1, s.scores + m * s.keys_per_tile, s.keys_per_tile, values, seen[m].from, seen[m].to, s.padded_D,
                    s.sums + (row + m) * s.sums_stride, s.sums_stride);
    }
  }
};

}  // namespace
