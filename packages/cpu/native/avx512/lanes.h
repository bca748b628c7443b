// Sixteen float32 lanes: what the shared kernels (quantize_rows.h, packed_blocks.h, int8_epilogue.h, *_tiles.h) need
// of AVX512 F, BW, VL, DQ, VNNI. avx2/lanes.h has the same names with eight. Partial loads and stores touch no memory
// beyond their count.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "metashard/backend.h"
#include "unroll.h"

namespace {

struct lanes {
  static constexpr int width = 16;
  using floats = __m512;
  using ints = __m512i;
  using doubles = __m512d;  // half the lanes

  static __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }

  static floats zero() { return _mm512_setzero_ps(); }
  static floats set1(float value) { return _mm512_set1_ps(value); }
  static floats add(floats a, floats b) { return _mm512_add_ps(a, b); }
  static floats mul(floats a, floats b) { return _mm512_mul_ps(a, b); }
  static floats fmadd(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
  static floats abs(floats a) { return _mm512_abs_ps(a); }
  // The larger; where `value` is NaN, `so_far`.
  static floats max(floats value, floats so_far) { return _mm512_max_ps(value, so_far); }
  static float sum(floats a) { return _mm512_reduce_add_ps(a); }
  // Lane i: sum(v[i]), added in the same order.
  static floats sum_each(const floats (&v)[16]) {
    floats halves[8], quarters[4], pairs[2];
    unroll<8>([&](auto i) {
      halves[i] = add(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44), _mm512_shuffle_f32x4(v[i], v[i + 8], 0xee));
    });
    unroll<4>([&](auto i) {
      const floats a = halves[i], b = halves[i + 4];
      quarters[i] = add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    });
    unroll<2>([&](auto i) {
      const floats a = quarters[i], b = quarters[i + 2];
      pairs[i] = add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    });
    const floats sums = add(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88), _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd));
    const ints order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return _mm512_permutexvar_ps(order, sums);
  }
  static float maximum(floats a) { return _mm512_reduce_max_ps(a); }

  static floats load(const float *p) { return _mm512_loadu_ps(p); }
  static floats load_partial(const float *p, int64_t count) { return _mm512_maskz_loadu_ps(first(count), p); }
  static void store(float *p, floats v) { _mm512_storeu_ps(p, v); }
  static void store_partial(float *p, floats v, int64_t count) { _mm512_mask_storeu_ps(p, first(count), v); }

  // Elements of a float dtype as float32.
  template <int dtype>
  static floats widen(__m256i halves) {
    if constexpr (dtype == MS_FLOAT16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  template <int dtype>
  static floats load_as(const void *base, int64_t index) {
    const uint16_t *halves = static_cast<const uint16_t *>(base) + index;
    if constexpr (dtype == MS_FLOAT32) return load(static_cast<const float *>(base) + index);
    else return widen<dtype>(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(halves)));
  }
  template <int dtype>
  static floats load_as_partial(const void *base, int64_t index, int64_t count) {
    if constexpr (dtype == MS_FLOAT32) return load_partial(static_cast<const float *>(base) + index, count);
    else return widen<dtype>(_mm256_maskz_loadu_epi16(first(count), static_cast<const uint16_t *>(base) + index));
  }
  static floats through_float16(floats v) {
    return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // Bit i: lane i is NaN; lane i is not below the threshold (NaN is not).
  static uint32_t nan_bits(floats v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q); }
  static uint32_t not_below_bits(floats v, floats threshold) { return _mm512_cmp_ps_mask(v, threshold, _CMP_NLT_UQ); }
  // v where |v| is below the threshold, else 0.
  static floats keep_below(floats v, floats threshold) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(abs(v), threshold, _CMP_LT_OQ), v);
  }

  // rint(v * scale), ties to even; 0 where the product is NaN.
  static ints round_scaled(floats v, floats scale) {
    const floats product = _mm512_mul_ps(v, scale);
    return _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(product, product, _CMP_ORD_Q), product);
  }
  static void store_int8(int8_t *p, ints v) { _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(v)); }
  static void store_int8_partial(int8_t *p, ints v, int64_t count) { _mm512_mask_cvtepi32_storeu_epi8(p, first(count), v); }

  // 64 bytes, each with `flip` inverted in it, in the guise of floats.
  static floats flip_bytes(const float *p, uint32_t flip) {
    return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(flip))));
  }
  static ints zero_ints() { return _mm512_setzero_si512(); }
  static ints load_ints(const int32_t *p) { return _mm512_loadu_si512(p); }
  static void store_ints(int32_t *p, ints v) { _mm512_storeu_si512(p, v); }
  static void store_ints_partial(int32_t *p, ints v, int64_t count) { _mm512_mask_storeu_epi32(p, first(count), v); }

  // sums[i] + the four signed bytes of dword i.
  static ints add_quads(ints sums, const int8_t *line) {
    return _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), _mm512_loadu_si512(line));
  }
  // 16 signed bytes.
  static floats widen_bytes(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
  }
  // Four floats, repeated.
  static floats repeat4(const float *p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  // v[i] holds four partial sums of each of the columns 4 i … 4 i + 3: the sums of columns 0 … 15.
  static floats sum_quads(const floats (&v)[4]) {
    const floats low = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const floats high = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const floats sums = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
    const ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(order, sums);  // lane 4 l + i held column 4 i + l
  }
  // The signed byte `byte` (0 … 3) of each dword.
  template <int byte>
  static floats bytes_of(const int8_t *line) {
    const ints dwords = _mm512_loadu_si512(line);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(byte == 3 ? dwords : _mm512_slli_epi32(dwords, 24 - 8 * byte), 24));
  }
  // One column of a packed int8 block: the signed byte `byte` (0 … 3) of each dword, times 2^-7.
  static floats byte_lane(const int8_t *line, int byte) {
    const ints moved = _mm512_sll_epi32(_mm512_loadu_si512(line), _mm_cvtsi32_si128(24 - 8 * byte));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(moved, 24)), _mm512_set1_ps(0x1p-7f));
  }

  static doubles set1_double(double value) { return _mm512_set1_pd(value); }
  static doubles mul(doubles a, doubles b) { return _mm512_mul_pd(a, b); }
  static doubles add(doubles a, doubles b) { return _mm512_add_pd(a, b); }
  static doubles fmadd(doubles a, doubles b, doubles c) { return _mm512_fmadd_pd(a, b, c); }
  static doubles low(floats v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
  static doubles high(floats v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }
  static doubles low(ints v) { return _mm512_cvtepi32_pd(_mm512_castsi512_si256(v)); }
  static doubles high(ints v) { return _mm512_cvtepi32_pd(_mm512_extracti32x8_epi32(v, 1)); }
  static floats narrow(doubles low, doubles high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
  }

  // rows[i] lane j ↔ rows[j] lane i.
  static void transpose(floats (&rows)[16]) {
    floats pairs[16];
    unroll<8>([&](auto i) {
      pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
      pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    });
    unroll<8>([&](auto i) {  // now rows[4 b + j]: column j of rows 4 b … 4 b + 3 in each 128-bit quarter
      constexpr int from = i / 2 * 4 + i % 2, to = i / 2 * 4 + i % 2 * 2;
      const __m512d a = _mm512_castps_pd(pairs[from]), b = _mm512_castps_pd(pairs[from + 2]);
      rows[to] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      rows[to + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    });
    unroll<4>([&](auto j) {  // quarters 0 and 2, 1 and 3 of two rows each
      pairs[j] = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0x88);
      pairs[4 + j] = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0x88);
      pairs[8 + j] = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0xdd);
      pairs[12 + j] = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0xdd);
    });
    unroll<4>([&](auto j) {
      rows[j] = _mm512_shuffle_f32x4(pairs[j], pairs[4 + j], 0x88);
      rows[8 + j] = _mm512_shuffle_f32x4(pairs[j], pairs[4 + j], 0xdd);
      rows[4 + j] = _mm512_shuffle_f32x4(pairs[8 + j], pairs[12 + j], 0x88);
      rows[12 + j] = _mm512_shuffle_f32x4(pairs[8 + j], pairs[12 + j], 0xdd);
    });
  }
};

}  // namespace
