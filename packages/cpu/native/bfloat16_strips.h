// int8_weight_linear with activations rounded to bfloat16, many rows: strips (strip_product.h) of the weight as pairs of
// bfloat16, [k/2][32 columns][2], in which every int8 is exact; x as bfloat16 in scratch, as the kernel wants it. Here is
// what the kernels of AVX512-BF16 and of AMX have in common; needs AVX512 F and BW, and `lanes` of avx512/lanes.h.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "int8_weight_tiles.h"
#include "packed_blocks.h"
#include "strip_product.h"
#include "tasks.h"

namespace {

constexpr int bfloat16_strip_columns = 32;
constexpr int pair_lanes = 16;  // pairs in a vector

// float32 → bfloat16 in the upper half of each dword, round-to-nearest-even; NaN stays NaN (quiet).
inline __m512i rounded_to_bfloat16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}

// 32 elements of a row of x from k on as 16 pairs, zero beyond K.
inline __m512i bfloat16_pairs(const float *row, int64_t k, int64_t K) {
  const auto load = [&](int64_t from) {
    const int64_t count = K - from < 0 ? 0 : smaller(16, K - from);
    const __mmask16 present = static_cast<__mmask16>((1u << count) - 1u);
    return rounded_to_bfloat16(_mm512_maskz_loadu_ps(present, row + from));
  };
  const __m512i odd_words =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13,
                       11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_epi16(load(k), odd_words, load(k + 16));
}

// strip[(k - k0) / 2][column] = the pair CB[n0 + column][k, k + 1] for 32 columns; k past K are the zeros of the packed layout.
inline void pack_bfloat16_strip(const int8_weight_linear_call &call, const int8_t *packed, const strip_range &range,
                                uint32_t *strip) {
  for (int half = 0; half < 2; half++) {
    const int8_t *line = lines_of(call, packed, range, half * block_rows);
    uint32_t *to = strip + half * block_rows;
    for (int64_t k = 0; k < range.count; k += 4, line += 64, to += 2 * bfloat16_strip_columns) {
      const __m512i even = _mm512_castps_si512(lanes::bytes_of<0>(line)), odd = _mm512_castps_si512(lanes::bytes_of<1>(line));
      const __m512i even2 = _mm512_castps_si512(lanes::bytes_of<2>(line)), odd2 = _mm512_castps_si512(lanes::bytes_of<3>(line));
      _mm512_storeu_si512(to, _mm512_or_si512(odd, _mm512_srli_epi32(even, 16)));
      _mm512_storeu_si512(to + bfloat16_strip_columns, _mm512_or_si512(odd2, _mm512_srli_epi32(even2, 16)));
    }
  }
}

// Where a strided weight is packed: behind the activations.
inline uint8_t *behind_activations(const int8_weight_linear_call &call) {
  return call.scratch + round_up(call.rows, 48) * round_up(call.K, tile_columns) * 2 + 4096;
}

}  // namespace
