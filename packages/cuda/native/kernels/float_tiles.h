// x · weightᵀ in float32 for many rows, for linear.cu and int8_weight_linear.cu, which say how 64 rows of the weight are loaded
// and what becomes of a sum: a block takes 64 × 64 outputs through shared memory, 32 columns of K at a time.
#pragma once
#include "../simt/simt.h"

static constexpr int tile = 64, depth = 32, thread_outputs = 4;

struct FloatTiles {
  float x[depth][tile + 1], weight[depth][tile + 1];  // the last column spreads a row over the banks
};

// Rows `first` … of a matrix [rows, K], columns k0 … k0 + depth - 1, by 256 threads; zeros outside.
template <class T>
SIMT_DEVICE void load_float_tile(float (&to)[depth][tile + 1], const T *from, int64_t stride, int64_t first, int64_t rows,
                                 int64_t k0, int64_t K) {
#pragma unroll
  for (int i = 0; i < tile * depth / 256; i++) {
    const int index = threadIdx.x + i * 256, row = index / depth, k = index % depth;
    const bool exists = first + row < rows && k0 + k < K;
    to[k][row] = exists ? to_float(from[(first + row) * stride + k0 + k]) : 0.0f;
  }
}

// By 256 threads; one owns the outputs (y + 16 i, x + 16 j). load_weight(n0, k0) fills tiles.weight, store(t, n, sum) takes a
// result.
template <class LoadWeight, class Store>
SIMT_DEVICE void multiply_float_tiles(const float *x_rows, int64_t x_stride, int64_t rows, int64_t K, int64_t N,
                                      FloatTiles &tiles, const LoadWeight &load_weight, const Store &store) {
  const int64_t t0 = static_cast<int64_t>(blockIdx.y) * tile, n0 = static_cast<int64_t>(blockIdx.x) * tile;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  float sum[thread_outputs][thread_outputs] = {};
  for (int64_t k0 = 0; k0 < K; k0 += depth) {
    load_float_tile(tiles.x, x_rows, x_stride, t0, rows, k0, K);
    load_weight(n0, k0);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < depth; k++) {
#pragma unroll
      for (int i = 0; i < thread_outputs; i++) {
#pragma unroll
        for (int j = 0; j < thread_outputs; j++) {
          sum[i][j] = ms_fma(tiles.x[k][y + 16 * i], tiles.weight[k][x + 16 * j], sum[i][j]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < thread_outputs; i++) {
#pragma unroll
    for (int j = 0; j < thread_outputs; j++) {
      const int64_t t = t0 + y + 16 * i, n = n0 + x + 16 * j;
      if (t < rows && n < N) store(t, n, sum[i][j]);
    }
  }
}
