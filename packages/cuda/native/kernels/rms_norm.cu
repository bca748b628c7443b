// x / sqrt(mean(x²) + epsilon) · weight over rows of H (Zhang & Sennrich 2019, arXiv 1910.07467). A block takes one row; the
// sum is in float64.
#include "float_types.h"
#include "reduce.h"

extern "C" __global__ void __launch_bounds__(256) ms_rms_norm(ms_rms_norm_call call) {
  const float *x = call.x + blockIdx.x * call.x_stride;
  float *out = call.out + blockIdx.x * call.out_stride;
  double squares = 0;
  for (int64_t i = threadIdx.x; i < call.H; i += blockDim.x) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double inverse = 1.0 / sqrt(block_sum(squares) / static_cast<double>(call.H) + call.epsilon);
  for (int64_t i = threadIdx.x; i < call.H; i += blockDim.x) {
    const float normal = static_cast<float>(static_cast<double>(x[i]) * inverse);
    out[i] = normal * load_float(call.weight, call.weight_dtype, i);
  }
}
