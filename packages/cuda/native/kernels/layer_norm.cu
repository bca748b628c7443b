// (x - mean) / sqrt(variance + epsilon) · weight + bias over rows of H (Ba et al. 2016, arXiv 1607.06450). A block takes one
// row; sums are in float64, in two passes, so that a large mean costs no digits.
#include "float_types.h"
#include "reduce.h"

extern "C" __global__ void __launch_bounds__(256) ms_layer_norm(ms_layer_norm_call call) {
  const float *x = call.x + blockIdx.x * call.x_stride;
  float *out = call.out + blockIdx.x * call.out_stride;
  const double H = static_cast<double>(call.H);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < call.H; i += blockDim.x) sum += static_cast<double>(x[i]);
  const double mean = block_sum(sum) / H;
  double squares = 0;
  for (int64_t i = threadIdx.x; i < call.H; i += blockDim.x) {
    const double distance = static_cast<double>(x[i]) - mean;
    squares += distance * distance;
  }
  const double inverse = 1.0 / sqrt(block_sum(squares) / H + call.epsilon);
  for (int64_t i = threadIdx.x; i < call.H; i += blockDim.x) {
    const float normal = static_cast<float>((static_cast<double>(x[i]) - mean) * inverse);
    const float scaled = normal * load_float(call.weight, call.weight_dtype, i);
    out[i] = call.bias == nullptr ? scaled : scaled + load_float(call.bias, call.bias_dtype, i);
  }
}
