// Row ids[t] of a table, as float32. A block takes one token. The host cannot see the ids without waiting for the device: one
// out of range gives a row of NaN, and nothing outside the table is read.
#include "float_types.h"

extern "C" __global__ void __launch_bounds__(256) ms_embedding(ms_embedding_call call) {
  const int64_t id = call.ids[blockIdx.x];
  float *out = call.out + blockIdx.x * call.out_stride;
  const bool exists = id >= 0 && id < call.V;
  for (int64_t i = threadIdx.x; i < call.H; i += blockDim.x) {
    out[i] = exists ? load_float(call.table, call.table_dtype, id * call.table_stride + i) : NAN;
  }
}
