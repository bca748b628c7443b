// Eight float32 lanes: what the shared kernels (quantize_rows.h, packed_blocks.h, int8_epilogue.h, *_tiles.h) need of
// AVX2, FMA and F16C. avx512/lanes.h has the same names with sixteen. Partial loads and stores touch no memory beyond their
// count.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "metashard/backend.h"
#include "unroll.h"

namespace {

struct lanes {
  static constexpr int width = 8;
  using floats = __m256;
  using ints = __m256i;
  using doubles = __m256d;  // half the lanes

  // All bits set in the first `count` lanes.
  static ints first(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static floats zero() { return _mm256_setzero_ps(); }
  static floats set1(float value) { return _mm256_set1_ps(value); }
  static floats add(floats a, floats b) { return _mm256_add_ps(a, b); }
  static floats mul(floats a, floats b) { return _mm256_mul_ps(a, b); }
  static floats fmadd(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
  static floats abs(floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  // The larger; where `value` is NaN, `so_far`.
  static floats max(floats value, floats so_far) { return _mm256_max_ps(value, so_far); }
  static float sum(floats a) {
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }
  // Lane i: sum(v[i]), added in the same order.
  static floats sum_each(const floats (&v)[8]) {
    floats halves[4], pairs[2];
    unroll<4>([&](auto i) {
      halves[i] = add(_mm256_permute2f128_ps(v[i], v[i + 4], 0x20), _mm256_permute2f128_ps(v[i], v[i + 4], 0x31));
    });
    unroll<2>([&](auto i) {
      const floats a = halves[i], b = halves[i + 2];
      pairs[i] = add(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    });
    const floats sums = add(_mm256_shuffle_ps(pairs[0], pairs[1], 0x88), _mm256_shuffle_ps(pairs[0], pairs[1], 0xdd));
    return _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7));
  }
  static float maximum(floats a) {
    __m128 v = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
  }

  static floats load(const float *p) { return _mm256_loadu_ps(p); }
  static floats load_partial(const float *p, int64_t count) { return _mm256_maskload_ps(p, first(count)); }
  static void store(float *p, floats v) { _mm256_storeu_ps(p, v); }
  static void store_partial(float *p, floats v, int64_t count) { _mm256_maskstore_ps(p, first(count), v); }

  // Elements of a float dtype as float32.
  template <int dtype>
  static floats widen(__m128i halves) {
    if constexpr (dtype == MS_FLOAT16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  template <int dtype>
  static floats load_as(const void *base, int64_t index) {
    if constexpr (dtype == MS_FLOAT32) return load(static_cast<const float *>(base) + index);
    else return widen<dtype>(_mm_loadu_si128(reinterpret_cast<const __m128i *>(static_cast<const uint16_t *>(base) + index)));
  }
  template <int dtype>
  static floats load_as_partial(const void *base, int64_t index, int64_t count) {
    if constexpr (dtype == MS_FLOAT32) {
      return load_partial(static_cast<const float *>(base) + index, count);
    } else {
      alignas(16) uint16_t halves[8] = {};
      memcpy(halves, static_cast<const uint16_t *>(base) + index, static_cast<size_t>(count) * 2);
      return widen<dtype>(_mm_load_si128(reinterpret_cast<const __m128i *>(halves)));
    }
  }
  static floats through_float16(floats v) {
    return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // Bit i: lane i is NaN; lane i is not below the threshold (NaN is not).
  static uint32_t nan_bits(floats v) { return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q))); }
  static uint32_t not_below_bits(floats v, floats threshold) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, threshold, _CMP_NLT_UQ)));
  }
  // v where |v| is below the threshold, else 0.
  static floats keep_below(floats v, floats threshold) {
    return _mm256_and_ps(v, _mm256_cmp_ps(abs(v), threshold, _CMP_LT_OQ));
  }

  // rint(v * scale), ties to even; 0 where the product is NaN.
  static ints round_scaled(floats v, floats scale) {
    const floats product = _mm256_mul_ps(v, scale);
    return _mm256_cvtps_epi32(_mm256_and_ps(product, _mm256_cmp_ps(product, product, _CMP_ORD_Q)));
  }
  static __m128i bytes(ints v) {  // the values fit: saturating packs narrow exactly
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return _mm_packs_epi16(words, words);
  }
  static void store_int8(int8_t *p, ints v) { _mm_storel_epi64(reinterpret_cast<__m128i *>(p), bytes(v)); }
  static void store_int8_partial(int8_t *p, ints v, int64_t count) {
    alignas(16) int8_t all[16];
    _mm_store_si128(reinterpret_cast<__m128i *>(all), bytes(v));
    memcpy(p, all, static_cast<size_t>(count));
  }

  // 32 bytes, each with `flip` inverted in it, in the guise of floats.
  static floats flip_bytes(const float *p, uint32_t flip) {
    const ints bytes = _mm256_loadu_si256(reinterpret_cast<const ints *>(p));
    return _mm256_castsi256_ps(_mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(flip))));
  }
  static ints zero_ints() { return _mm256_setzero_si256(); }
  static ints load_ints(const int32_t *p) { return _mm256_loadu_si256(reinterpret_cast<const ints *>(p)); }
  static void store_ints(int32_t *p, ints v) { _mm256_storeu_si256(reinterpret_cast<ints *>(p), v); }
  static void store_ints_partial(int32_t *p, ints v, int64_t count) { _mm256_maskstore_epi32(p, first(count), v); }

  // sums[i] + the four signed bytes of dword i.
  static ints add_quads(ints sums, const int8_t *line) {
    const ints pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256(reinterpret_cast<const ints *>(line)));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // 8 signed bytes.
  static floats widen_bytes(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
  }
  // Four floats, repeated.
  static floats repeat4(const float *p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128 *>(p)); }
  // v[i] holds four partial sums of each of the columns 2 i and 2 i + 1: the sums of columns 0 … 7.
  static floats sum_quads(const floats (&v)[4]) {
    const floats low = _mm256_add_ps(_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
    const floats high = _mm256_add_ps(_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
    const floats sums = _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xee));
    return _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));  // lane 4 l + i held column 2 i + l
  }
  // The signed byte `byte` (0 … 3) of each dword.
  template <int byte>
  static floats bytes_of(const int8_t *line) {
    const ints dwords = _mm256_loadu_si256(reinterpret_cast<const ints *>(line));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(byte == 3 ? dwords : _mm256_slli_epi32(dwords, 24 - 8 * byte), 24));
  }
  // One column of a packed int8 block: the signed byte `byte` (0 … 3) of each dword, times 2^-7.
  static floats byte_lane(const int8_t *line, int byte) {
    const ints dwords = _mm256_loadu_si256(reinterpret_cast<const ints *>(line));
    const ints moved = _mm256_sll_epi32(dwords, _mm_cvtsi32_si128(24 - 8 * byte));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(moved, 24)), _mm256_set1_ps(0x1p-7f));
  }

  static doubles set1_double(double value) { return _mm256_set1_pd(value); }
  static doubles mul(doubles a, doubles b) { return _mm256_mul_pd(a, b); }
  static doubles add(doubles a, doubles b) { return _mm256_add_pd(a, b); }
  static doubles fmadd(doubles a, doubles b, doubles c) { return _mm256_fmadd_pd(a, b, c); }
  static doubles low(floats v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
  static doubles high(floats v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
  static doubles low(ints v) { return _mm256_cvtepi32_pd(_mm256_castsi256_si128(v)); }
  static doubles high(ints v) { return _mm256_cvtepi32_pd(_mm256_extracti128_si256(v, 1)); }
  static floats narrow(doubles low, doubles high) { return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low)); }

  // rows[i] lane j ↔ rows[j] lane i.
  static void transpose(floats (&rows)[8]) {
    floats pairs[8], quads[8];
    unroll<4>([&](auto i) {
      pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
      pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    });
    unroll<4>([&](auto i) {  // now quads[4 b + j]: columns j and 4 + j of rows 4 b … 4 b + 3
      constexpr int from = i / 2 * 4 + i % 2, to = i / 2 * 4 + i % 2 * 2;
      quads[to] = _mm256_shuffle_ps(pairs[from], pairs[from + 2], 0x44);
      quads[to + 1] = _mm256_shuffle_ps(pairs[from], pairs[from + 2], 0xee);
    });
    unroll<4>([&](auto j) {
      rows[j] = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x20);
      rows[4 + j] = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x31);
    });
  }
};

}  // namespace
