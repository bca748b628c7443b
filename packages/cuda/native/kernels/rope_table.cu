// cos and sin of positions · inverse frequencies, times `scaling`. The angle is rounded to float32 first, as transformers does,
// the cosine taken in float64 and rounded. A thread takes one angle.
#include "../simt/simt.h"
#include "calls.h"

extern "C" __global__ void __launch_bounds__(256) ms_rope_table(ms_rope_table_call call) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= call.tokens * call.half) return;
  const int64_t t = index / call.half, i = index % call.half;
  const float scaling = static_cast<float>(call.scaling);
  const double angle = ms_mul(static_cast<float>(call.positions[t]), call.inverse_frequencies[i]);
  call.cos[t * call.cos_stride + i] = static_cast<float>(cos(angle)) * scaling;
  call.sin[t * call.sin_stride + i] = static_cast<float>(sin(angle)) * scaling;
}
