// The rounding of LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339, section 3), as the CPU has it bit for bit.
#pragma once
#include "../simt/simt.h"

// value · scale to the nearest integer, ties to even, where scale is 127 / absmax or its like; 0 where absmax is 0 or the
// product NaN. Where 127 / absmax overflows (absmax < 3.74e-37) the quotient is taken in float64.
SIMT_DEVICE int8_t quantized(float value, float absmax, float scale) {
  if (absmax == 0.0f) return 0;
  if (scale == INFINITY) return static_cast<int8_t>(rint(static_cast<double>(value) * 127.0 / static_cast<double>(absmax)));
  const float quotient = ms_mul(value, scale);
  return quotient == quotient ? static_cast<int8_t>(__float2int_rn(quotient)) : int8_t{0};
}
