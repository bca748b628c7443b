// x · weightᵀ + bias with float weights, accumulated in float32. Few rows (decode): a warp takes one output column, its lanes side by
// side along K, so that the weight is read once. Many rows: a block takes 64 × 64 outputs through shared memory.
#include "float_types.h"

namespace {

constexpr int rows_at_once = 8;  // of ms_linear_few
constexpr int tile = 64, depth = 32, thread_outputs = 4;

struct Tiles {
  float x[depth][tile + 1], weight[depth][tile + 1];  // the last column spreads a row over the banks
};

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

// Rows `first` … of a matrix [rows, K], columns k0 … k0 + depth - 1, into shared memory as [depth][tile]; zeros outside.
template <class T>
SIMT_DEVICE void load_tile(float (&to)[depth][tile + 1], const T *from, int64_t stride, int64_t first, int64_t rows, int64_t k0,
                           int64_t K) {
#pragma unroll
  for (int i = 0; i < tile * depth / 256; i++) {
    const int index = threadIdx.x + i * 256, row = index / depth, k = index % depth;
    const bool exists = first + row < rows && k0 + k < K;
    to[k][row] = exists ? to_float(from[(first + row) * stride + k0 + k]) : 0.0f;
  }
}

// A thread owns the outputs (y + 16 i, x + 16 j).
template <class T>
SIMT_DEVICE void multiply_tiles(const ms_linear_call &call, const T *weight, Tiles &tiles) {
  const int64_t t0 = static_cast<int64_t>(blockIdx.y) * tile, n0 = static_cast<int64_t>(blockIdx.x) * tile;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  float sum[thread_outputs][thread_outputs] = {};
  for (int64_t k0 = 0; k0 < call.K; k0 += depth) {
    load_tile(tiles.x, call.x, call.x_stride, t0, call.rows, k0, call.K);
    load_tile(tiles.weight, weight, call.weight_stride, n0, call.N, k0, call.K);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < depth; k++) {
#pragma unroll
      for (int i = 0; i < thread_outputs; i++) {
#pragma unroll
        for (int j = 0; j < thread_outputs; j++) sum[i][j] = ms_fma(tiles.x[k][y + 16 * i], tiles.weight[k][x + 16 * j], sum[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < thread_outputs; i++) {
#pragma unroll
    for (int j = 0; j < thread_outputs; j++) {
      const int64_t t = t0 + y + 16 * i, n = n0 + x + 16 * j;
      if (t < call.rows && n < call.N) call.out[t * call.out_stride + n] = sum[i][j] + bias_of(call, n);
    }
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
  __shared__ Tiles tiles;
  Tiles &shared = tiles;
  with_float(call.weight, call.weight_dtype, [&](auto weight) { multiply_tiles(call, weight, shared); });
}
