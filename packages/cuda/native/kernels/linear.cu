// x · weightᵀ + bias with float weights, accumulated in float32. Few rows (decode): a warp takes one output column, its lanes
// side by side along K, so that the weight is read once. Many rows: a block takes 64 × 64 outputs through shared memory.
#include "float_tiles.h"
#include "float_types.h"

namespace {

constexpr int rows_at_once = 8;  // of ms_linear_few

SIMT_DEVICE float bias_of(const ms_linear_call &call, int64_t n) {
  return call.bias == nullptr ? 0.0f : load_float(call.bias, call.bias_dtype, n);
}

// Outputs (0 … rows - 1, n) by one warp; `rows` is at most ROWS, and rows past it repeat the last.
template <int ROWS, class T>
SIMT_DEVICE void column_of_few(const ms_linear_call &call, const T *weight, int64_t n) {
  const int lane = threadIdx.x % 32;
  const float *x[ROWS];
  float sum[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    x[r] = call.x + (r < call.rows ? r : call.rows - 1) * call.x_stride;
    sum[r] = 0.0f;
  }
#pragma unroll 4
  for (int64_t k = lane; k < call.K; k += 32) {
    const float w = to_float(weight[n * call.weight_stride + k]);
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[r] = ms_fma(x[r][k], w, sum[r]);
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const float total = warp_sum(sum[r]);
    if (lane == 0 && r < call.rows) call.out[r * call.out_stride + n] = total + bias_of(call, n);
  }
}

}  // namespace

// Up to 8 rows; a block of 8 warps takes 8 columns.
extern "C" __global__ void __launch_bounds__(256) ms_linear_few(ms_linear_call call) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (n >= call.N) return;
  with_float(call.weight, call.weight_dtype, [&](auto weight) {
    if (call.rows == 1) return column_of_few<1>(call, weight, n);
    if (call.rows <= 4) return column_of_few<4>(call, weight, n);
    column_of_few<rows_at_once>(call, weight, n);
  });
}

extern "C" __global__ void __launch_bounds__(256) ms_linear_tiles(ms_linear_call call) {
  __shared__ FloatTiles shared;
  FloatTiles &tiles = shared;
  with_float(call.weight, call.weight_dtype, [&](auto weight) {
    multiply_float_tiles(
        call.x, call.x_stride, call.rows, call.K, call.N, tiles,
        [&](int64_t n0, int64_t k0) { load_float_tile(tiles.weight, weight, call.weight_stride, n0, call.N, k0, call.K); },
        [&](int64_t t, int64_t n, float sum) { call.out[t * call.out_stride + n] = sum + bias_of(call, n); });
  });
}
