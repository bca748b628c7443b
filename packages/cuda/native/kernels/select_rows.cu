// Rows rows[o] of x. A block takes one row. A row out of range gives NaN, as in embedding.cu.
#include "../simt/simt.h"
#include "calls.h"

extern "C" __global__ void __launch_bounds__(256) ms_select_rows(ms_select_rows_call call) {
  const int64_t row = call.rows[blockIdx.x];
  float *out = call.out + blockIdx.x * call.out_stride;
  const bool exists = row >= 0 && row < call.tokens;
  for (int64_t i = threadIdx.x; i < call.H; i += blockDim.x) out[i] = exists ? call.x[row * call.x_stride + i] : NAN;
}
