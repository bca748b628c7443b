// Rotary position embedding (Su et al. 2021, arXiv 2104.09864): (a, b) → (a cos - b sin, b cos + a sin) on the pairs (i, i +
// half), or (2i, 2i + 1) where interleaved; features from 2 · half on pass through. A block takes one token.
#include "../simt/simt.h"
#include "calls.h"

extern "C" __global__ void __launch_bounds__(256) ms_rope(ms_rope_call call) {
  const int64_t t = blockIdx.x, passing = call.D - 2 * call.half;
  const float *x = call.x + t * call.x_stride[0];
  float *out = call.out + t * call.out_stride[0];
  for (int64_t index = threadIdx.x; index < call.N * call.half; index += blockDim.x) {
    const int64_t n = index / call.half, i = index % call.half;
    const int64_t first = call.interleaved ? 2 * i : i, second = call.interleaved ? 2 * i + 1 : i + call.half;
    const float c = call.cos[t * call.cos_stride + i], s = call.sin[t * call.sin_stride + i];
    const float a = x[n * call.x_stride[1] + first], b = x[n * call.x_stride[1] + second];
    out[n * call.out_stride[1] + first] = a * c - b * s;
    out[n * call.out_stride[1] + second] = b * c + a * s;
  }
  for (int64_t index = threadIdx.x; index < call.N * passing; index += blockDim.x) {
    const int64_t n = index / passing, i = 2 * call.half + index % passing;
    out[n * call.out_stride[1] + i] = x[n * call.x_stride[1] + i];
  }
}
