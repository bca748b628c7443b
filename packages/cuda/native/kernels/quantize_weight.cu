// Row-wise absmax quantization of a weight. Strided: a block takes one row. Packed: a block of 16 warps takes the 16 rows of a
// packed block, a warp a row for the absmax.
#include "calls.h"
#include "float_types.h"
#include "int8_rounding.h"
#include "packed_int8.h"
#include "reduce.h"

namespace {

SIMT_DEVICE float weight_at(const ms_quantize_weight_call &call, int64_t n, int64_t k) {
  const float w = load_float(call.weight, call.weight_dtype, n * call.weight_stride + k);
  return call.float16_first ? to_float(from_float<ms_half>(w)) : w;
}

// float16_first: as bitsandbytes computes it, with two roundings.
SIMT_DEVICE float scale_of(const ms_quantize_weight_call &call, float absmax) {
  return call.float16_first ? ms_mul(ms_div(1.0f, absmax), 127.0f) : ms_div(127.0f, absmax);
}

struct RowScales {
  float absmax[block_rows], scale[block_rows];
};

}  // namespace

extern "C" __global__ void __launch_bounds__(256) ms_quantize_weight_rows(ms_quantize_weight_call call) {
  const int64_t n = blockIdx.x;
  int largest = 0;
  for (int64_t k = threadIdx.x; k < call.K; k += blockDim.x) largest = max(largest, magnitude_bits(weight_at(call, n, k)));
  const float absmax = __int_as_float(block_max(largest)), scale = scale_of(call, absmax);
  if (threadIdx.x == 0) call.SCB[n] = absmax;
  for (int64_t k = threadIdx.x; k < call.K; k += blockDim.x) {
    call.CB[n * call.CB_stride + k] = quantized(weight_at(call, n, k), absmax, scale);
  }
}

extern "C" __global__ void __launch_bounds__(512) ms_quantize_weight_blocks(ms_quantize_weight_call call) {
  __shared__ RowScales rows;
  const int64_t n0 = static_cast<int64_t>(blockIdx.x) * block_rows;
  const int row = threadIdx.x / 32, lane = threadIdx.x % 32;
  int largest = 0;
  if (n0 + row < call.N) {
    for (int64_t k = lane; k < call.K; k += 32) largest = max(largest, magnitude_bits(weight_at(call, n0 + row, k)));
  }
  largest = warp_max(largest);
  if (lane == 0) {
    rows.absmax[row] = __int_as_float(largest);
    rows.scale[row] = scale_of(call, rows.absmax[row]);
    if (n0 + row < call.N) call.SCB[n0 + row] = rows.absmax[row];
  }
  __syncthreads();
  write_packed_block(call.CB, call.N, call.K, n0, [&](int64_t n, int64_t k) {
    return quantized(weight_at(call, n, k), rows.absmax[n - n0], rows.scale[n - n0]);
  });
}
