// Float vectors of the widest registers the translation unit is built for, with gcc's vector extension: 16, 8 or 4 lanes.
// Arithmetic and comparisons are the compiler's own; here are loads, stores, conversions, sums over lanes and the exponential
// family. Everything is in an anonymous namespace, so that no two instruction sets ever share a function.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "floats.h"

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vfloat __attribute__((vector_size(LANES * 4)));
typedef int32_t vint __attribute__((vector_size(LANES * 4)));
typedef uint32_t vuint __attribute__((vector_size(LANES * 4)));
typedef uint16_t vshort __attribute__((vector_size(LANES * 2)));
typedef int8_t vchar __attribute__((vector_size(LANES)));
// Float64 work goes by halves of a vfloat, to stay in one register.
constexpr int HALF = LANES / 2;
typedef float vhalf __attribute__((vector_size(HALF * 4)));
typedef double vdouble __attribute__((vector_size(HALF * 8)));

inline vfloat splat(float value) { return value - vfloat{}; }  // x - 0 is x, also for -0: the compiler leaves it out
inline vint bits(vfloat v) { return (vint)v; }
inline vfloat select(vint mask, vfloat yes, vfloat no) { return mask ? yes : no; }
inline vfloat larger(vfloat a, vfloat b) { return a > b ? a : b; }  // b where a is NaN
inline vfloat magnitude(vfloat v) { return (vfloat)(bits(v) & 0x7fffffff); }

inline vfloat load(const float *p) {
  vfloat v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float *p, vfloat v) { memcpy(p, &v, sizeof v); }

// The first n < LANES elements, `rest` behind them.
inline vfloat load_some(const float *p, int64_t n, float rest = 0.0f) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_mask_loadu_ps((__m512)splat(rest), (__mmask16)((1u << n) - 1), p);
#else
  float all[LANES];
  store(all, splat(rest));
  for (int64_t i = 0; i < n; i++) all[i] = p[i];
  return load(all);
#endif
}
inline void store_some(float *p, vfloat v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  float all[LANES];
  store(all, v);
  for (int64_t i = 0; i < n; i++) p[i] = all[i];
#endif
}

inline vdouble load_double(const float *p) {
  vhalf v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vdouble);
}

// Two halves of float64, rounded, as one vector.
inline vfloat join(vdouble low, vdouble high) {
  const vhalf a = __builtin_convertvector(low, vhalf), b = __builtin_convertvector(high, vhalf);
#if defined(__AVX512F__)
  return (vfloat)_mm512_insertf32x8(_mm512_castps256_ps512((__m256)a), (__m256)b, 1);
#elif defined(__AVX2__)
  return (vfloat)_mm256_set_m128((__m128)b, (__m128)a);
#else
  return vfloat{a[0], a[1], b[0], b[1]};
#endif
}

inline vfloat load_float16(const uint16_t *p) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
  return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
  vfloat v;
  for (int i = 0; i < LANES; i++) v[i] = float16_to_float(p[i]);
  return v;
#endif
}
inline void store_float16(uint16_t *p, vfloat v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < LANES; i++) p[i] = float_to_float16(v[i]);
#endif
}

inline vfloat load_bfloat16(const uint16_t *p) {
  vshort v;
  memcpy(&v, p, sizeof v);
  return (vfloat)(__builtin_convertvector(v, vuint) << 16);
}
// Round-to-nearest-even on the upper half; NaN becomes quiet.
inline void store_bfloat16(uint16_t *p, vfloat v) {
  const vuint b = (vuint)v;
  const vuint rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  const vshort out = __builtin_convertvector((b & 0x7fffffff) > 0x7f800000 ? (b >> 16) | 0x40 : rounded, vshort);
  memcpy(p, &out, sizeof out);
}

inline vfloat load_int8(const int8_t *p) {
  vchar v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vfloat);
}
// Values of magnitude up to 127, rounded to the nearest, ties to even.
inline void store_int8(int8_t *p, vfloat v, int64_t n = LANES) {
  const vchar out = __builtin_convertvector(bits(v + 12582912.0f) - 0x4b400000, vchar);  // 1.5 · 2²³: its last bit is worth 1
  memcpy(p, &out, (size_t)n);
}
// v as its own rounded value: keeps the compiler from joining a product with the sum it goes into.
inline vfloat rounded(vfloat v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__AVX2__)
  asm("" : "+x"(v));
#endif
  return v;
}

// Elements i … of an array of a float dtype; loops over it are split by the compiler, one per dtype.
inline vfloat load_any(const void *p, int32_t dtype, int64_t i) {
  if (dtype == MS_FLOAT16) return load_float16((const uint16_t *)p + i);
  if (dtype == MS_BFLOAT16) return load_bfloat16((const uint16_t *)p + i);
  return load((const float *)p + i);
}

inline float sum_of_lanes(vfloat v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float lanes[LANES], sum = 0;
  store(lanes, v);
  for (int i = 0; i < HALF; i++) sum += lanes[i] + lanes[i + HALF];
  return sum;
#endif
}
// to[i] = sum of the lanes of v[i]: two rounds interleave the four vectors, so that each 128 bits hold a part of all four sums.
inline void store_sums_of_four(float *to, const vfloat v[4]) {
#if defined(__AVX512F__)
  const __m512 ab =
      _mm512_add_ps(_mm512_unpacklo_ps((__m512)v[0], (__m512)v[1]), _mm512_unpackhi_ps((__m512)v[0], (__m512)v[1]));
  const __m512 cd =
      _mm512_add_ps(_mm512_unpacklo_ps((__m512)v[2], (__m512)v[3]), _mm512_unpackhi_ps((__m512)v[2], (__m512)v[3]));
  const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(__AVX2__)
  const __m256 ab =
      _mm256_add_ps(_mm256_unpacklo_ps((__m256)v[0], (__m256)v[1]), _mm256_unpackhi_ps((__m256)v[0], (__m256)v[1]));
  const __m256 cd =
      _mm256_add_ps(_mm256_unpacklo_ps((__m256)v[2], (__m256)v[3]), _mm256_unpackhi_ps((__m256)v[2], (__m256)v[3]));
  const __m256 all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
  for (int i = 0; i < 4; i++) to[i] = sum_of_lanes(v[i]);
#endif
}
inline double sum_of_lanes(vdouble v) {
  double sum = 0;
  for (int i = 0; i < HALF; i++) sum += v[i];
  return sum;
}
// True if any lane of a comparison is.
inline bool any(vint mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}
// NaN counts as smallest.
inline float largest_lane(vfloat v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float largest = v[0];
  for (int i = 1; i < LANES; i++) largest = v[i] > largest || largest != largest ? v[i] : largest;
  return largest;
#endif
}

// e^x within 1.5 ulp: x = n ln 2 + r with |r| ≤ ln 2 / 2, a polynomial fitted for the least relative error (2e-8 as rounded),
// exponent added. 0 below -87 (no denormals), infinity above ln of the largest float, NaN stays.
inline vfloat exponential(vfloat x) {
#if defined(__AVX512F__)
  const __mmask16 present = _mm512_cmp_ps_mask((__m512)x, (__m512)splat(-87.0f), _CMP_NLT_UQ);
  x = (vfloat)_mm512_min_ps((__m512)splat(89.0f), (__m512)x);  // x where it is NaN
#endif
  const float magic = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
  const vfloat shifted = x * 1.44269504f + magic;
  const vfloat n = shifted - magic;
  const vfloat r = (x - n * 0.693145751953125f) - n * 1.42860682e-6f;  // ln 2 in two parts, the first exact times n
  vfloat p = splat(0.0013836795f);
  p = p * r + 0.008374857f;
  p = p * r + 0.04166823f;
  p = p * r + 0.1666642f;
  p = p * r + 0.4999999f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return (vfloat)_mm512_maskz_scalef_ps(present, (__m512)p, (__m512)n);
#else
  // 2^(n - 1), then times 2: n may be 128.
  const vint exponent = (bits(shifted) - (int32_t)(0x4b400000 - 126)) << 23;
  vfloat result = p * (vfloat)exponent * 2.0f;
  result = select(x < -87.0f, splat(0.0f), result);
  return select(x > 88.7228317f, splat(__builtin_inff()), result);
#endif
}

inline vfloat sigmoid(vfloat x) { return 1.0f / (1.0f + exponential(-x)); }

// Odd polynomial below 0.6 (fitted, relative error 3e-9), 1 - 2 / (e^2|x| + 1) above.
inline vfloat hyperbolic_tangent(vfloat x) {
  const vfloat t = x * x, size = magnitude(x);
  vfloat p = splat(-0.00590586662f);
  p = p * t + 0.0208053831f;
  p = p * t - 0.0537866838f;
  p = p * t + 0.133319587f;
  p = p * t - 0.333332986f;
  const vfloat small = x + x * t * p;
  const vfloat large = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
  const vfloat signed_large = (vfloat)(bits(large) | (bits(x) & (int32_t)0x80000000));
  return select(size < 0.6f, small, signed_large);
}

// The normal distribution function Φ(x). Φ(-z) = e^(-z²/2) · t · P(t), t = 1 / (1 + 0.35 z), fitted: relative error 4e-8, plus
// what rounding z² costs the exponential.
inline vfloat normal_distribution(vfloat x) {
  const vfloat z = magnitude(x), t = 1.0f / (1.0f + 0.35f * z);
  vfloat p = splat(-0.0291459933f);
  p = p * t + 0.143972069f;
  p = p * t - 0.255715132f;
  p = p * t + 0.159175307f;
  p = p * t - 0.0231107119f;
  p = p * t + 0.105508409f;
  p = p * t + 0.119832762f;
  p = p * t + 0.139861882f;
  p = p * t + 0.139621407f;
  const vfloat lower = exponential(-0.5f * z * z) * t * p;
  return select(x > 0.0f, 1.0f - lower, lower);
}

}  // namespace
