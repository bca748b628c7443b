// Index of the largest value of each row; the first of equals; NaN counts as largest. A block takes one row.
#include "calls.h"
#include "reduce.h"

extern "C" __global__ void __launch_bounds__(512) ms_argmax(ms_argmax_call call) {
  const float *x = call.x + blockIdx.x * call.x_stride;
  const Largest<float> largest = block_largest<float>(call.V, [x](int64_t i) { return x[i]; });
  if (threadIdx.x == 0) call.out[blockIdx.x] = largest.index;
}
