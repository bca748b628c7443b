// float16 and bfloat16 ↔ float32, exactly IEEE round-to-nearest-even, and the float-to-int8 rounding shared by all kernels.
// Plain C in an anonymous namespace: every translation unit compiles its own copy for its own instruction set.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "metashard/backend.h"

namespace {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline float bfloat16_to_float(uint16_t bits) { return float_of((uint32_t)bits << 16); }

// The upper half, rounded; NaN keeps its sign and payload and becomes quiet.
inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Exact. Denormals through a float subtraction: 2^-14 · (1 + f) - 2^-14.
inline float float16_to_float(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u)
    return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 | (magnitude > 0x7c00u ? 0x400000u : 0u));
  if (magnitude >= 0x400u) return float_of(sign | ((magnitude << 13) + 0x38000000u));
  return float_of(sign | bits_of(float_of(0x38800000u | magnitude << 13) - float_of(0x38800000u)));
}

// Magnitudes from 65520 up become infinity, NaN stays NaN (quiet). Denormals: adding 0.5 leaves units of 2^-24 in the low bits,
// rounded.
inline uint16_t float_to_float16(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (magnitude < 0x38800000u) return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  return (uint16_t)(sign | ((magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13));
}

// Element `index` of an array of a float dtype.
inline float load_float(const void *data, int32_t dtype, int64_t index) {
  if (dtype == MS_FLOAT16) return float16_to_float(((const uint16_t *)data)[index]);
  if (dtype == MS_BFLOAT16) return bfloat16_to_float(((const uint16_t *)data)[index]);
  return ((const float *)data)[index];
}

// rint to int8; NaN gives 0. |value| is at most 127 (+ a rounding) where it is a quotient by the absmax.
inline int8_t int8_of(float value) { return value == value ? (int8_t)rintf(value) : (int8_t)0; }

// The quotient where 127 / absmax overflows float32 (absmax < 3.74e-37).
inline int8_t int8_of_tiny(float value, float absmax) { return (int8_t)rint((double)value * 127.0 / (double)absmax); }

}  // namespace
