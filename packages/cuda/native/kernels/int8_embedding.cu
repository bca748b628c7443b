// Row ids[t] of an int8 table: CB · SCB / 127 as float32, the product in float64 and rounded once. A block takes one token; an
// id out of range gives a row of NaN, as in embedding.cu.
#include "calls.h"
#include "packed_int8.h"

extern "C" __global__ void __launch_bounds__(256, 1) ms_int8_embedding(ms_int8_embedding_call call) {
  const int64_t id = call.ids[blockIdx.x];
  float *out = call.out + blockIdx.x * call.out_stride;
  const bool exists = id >= 0 && id < call.V;
  const double scale = exists ? static_cast<double>(call.SCB[id]) : NAN;
  for (int64_t i = threadIdx.x; i < call.H; i += blockDim.x) {
    const int64_t at = call.packed ? packed_offset(call.H, id, i) : id * call.CB_stride + i;
    const double CB = exists ? static_cast<double>(call.CB[at]) : 0.0;
    out[i] = static_cast<float>(CB * scale / 127.0);
  }
}
