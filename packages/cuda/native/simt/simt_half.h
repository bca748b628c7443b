// The 16-bit floats of kernels and of the plugin's host code: types that hold bits, and conversions that are exact to the bit
// everywhere (IEEE 754, round to nearest even; every NaN becomes 0x7fff, as the GPU's cvt gives it). Arithmetic is done in
// float32. Needs nothing of CUDA.
#pragma once
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define MS_HALF_FN __host__ __device__ __forceinline__
#else
#define MS_HALF_FN inline
#endif

struct ms_half {
  uint16_t bits;
};
struct ms_bfloat16 {
  uint16_t bits;
};

MS_HALF_FN uint32_t ms_bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

MS_HALF_FN float ms_float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

MS_HALF_FN float to_float(float value) { return value; }

MS_HALF_FN float to_float(ms_half value) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return ms_float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // The exponent field re-read with float32's bias is 112 too small; scaling by 2^112 is exact and brings subnormals along.
  return ms_float_of(ms_bits_of(ms_float_of(magnitude << 13) * 0x1p112f) | sign);
#endif
}

MS_HALF_FN float to_float(ms_bfloat16 value) { return ms_float_of(static_cast<uint32_t>(value.bits) << 16); }

MS_HALF_FN ms_half ms_float_to_half(float value) {
#ifdef __CUDA_ARCH__
  ms_half narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  const uint32_t bits = ms_bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the end of the sum
    return {static_cast<uint16_t>(sign | (ms_bits_of(ms_float_of(magnitude) + 0.5f) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
#endif
}

MS_HALF_FN ms_bfloat16 ms_float_to_bfloat16(float value) {
  const uint32_t bits = ms_bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

// from_float<T>(value): T is float, ms_half or ms_bfloat16.
template <class T>
MS_HALF_FN T from_float(float value);
template <>
MS_HALF_FN float from_float<float>(float value) {
  return value;
}
template <>
MS_HALF_FN ms_half from_float<ms_half>(float value) {
  return ms_float_to_half(value);
}
template <>
MS_HALF_FN ms_bfloat16 from_float<ms_bfloat16>(float value) {
  return ms_float_to_bfloat16(value);
}

#undef MS_HALF_FN
