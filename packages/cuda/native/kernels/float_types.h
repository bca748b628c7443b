// The float dtypes in kernels: one element by its dtype's code, and code compiled once for each type.
#pragma once
#include "../simt/simt.h"
#include "calls.h"

// Element `index` of an array of a float dtype. The branch is the same for all threads; loops that are all loads use
// with_float.
SIMT_DEVICE float load_float(const void *data, int64_t dtype, int64_t index) {
  if (dtype == MS_FLOAT16) return to_float(static_cast<const ms_half *>(data)[index]);
  if (dtype == MS_BFLOAT16) return to_float(static_cast<const ms_bfloat16 *>(data)[index]);
  return static_cast<const float *>(data)[index];
}

SIMT_DEVICE void store_float(void *data, int64_t dtype, int64_t index, float value) {
  if (dtype == MS_FLOAT16) {
    static_cast<ms_half *>(data)[index] = from_float<ms_half>(value);
  } else if (dtype == MS_BFLOAT16) {
    static_cast<ms_bfloat16 *>(data)[index] = from_float<ms_bfloat16>(value);
  } else {
    static_cast<float *>(data)[index] = value;
  }
}

// body(data as a pointer to its dtype's type).
template <class Body>
SIMT_DEVICE void with_float(const void *data, int64_t dtype, const Body &body) {
  if (dtype == MS_FLOAT16) {
    body(static_cast<const ms_half *>(data));
  } else if (dtype == MS_BFLOAT16) {
    body(static_cast<const ms_bfloat16 *>(data));
  } else {
    body(static_cast<const float *>(data));
  }
}

// The bits of |value|: they order as the magnitudes do, and every NaN is above infinity.
SIMT_DEVICE int magnitude_bits(float value) { return __float_as_int(value) & 0x7fffffff; }
