// CA · CBᵀ over the packed CB in exact int32 (dp4a), for int8_linear.cu and int8_matmul.cu, which say what becomes of the sums:
// an epilogue with add_outliers(sum, t, n, first, step), which adds every step-th term from the first on to the sums
// [rows][columns] of the rows t and columns n, and store(t, n, accumulator, outliers).
// Few rows (decode): a block takes the 16 columns of a packed block, 16 threads side by side, 16 such groups along K. Many
// rows: a block takes 64 × 64 outputs through shared memory.
#pragma once
#include "calls.h"
#include "packed_int8.h"

static constexpr int few_rows = 8;
static constexpr int slices = 16;  // of K, in int8_few
static constexpr int product_tile = 64, tile_words = 16, outputs_each = 4;

struct Int8FewShared {
  int accumulators[slices][few_rows][block_rows];
  float outliers[slices][few_rows][block_rows];
};

struct Int8TileShared {
  int32_t CA[product_tile][tile_words + 1];  // the last column keeps the rows in different banks
  int32_t CB[tile_words][product_tile];
};

// Up to ROWS (and at least 1) rows, by 256 threads. Rows past the last repeat it.
template <int ROWS, class Epilogue>
SIMT_DEVICE void int8_few_rows(const ms_int8_product &product, const Epilogue &epilogue, Int8FewShared &shared) {
  const int n = threadIdx.x % block_rows, slice = threadIdx.x / block_rows;
  const int64_t n0 = static_cast<int64_t>(blockIdx.x) * block_rows;
  const int32_t *CB = block_words(product.CB, product.K, n0);
  const int32_t *CA[ROWS];
  int64_t t[ROWS];
  int sum[ROWS] = {};
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    t[r] = r < product.rows ? r : product.rows - 1;
    CA[r] = product.CA + t[r] * product.CA_stride;
  }
#pragma unroll 4
  for (int64_t word = slice; word < product.words; word += slices) {
    const int32_t b = CB[word * block_rows + n];
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[r] = __dp4a(CA[r][word], b, sum[r]);
  }
  float outliers[ROWS][1] = {};
  epilogue.add_outliers(outliers, t, {n0 + n}, slice, slices);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    shared.accumulators[slice][r][n] = sum[r];
    shared.outliers[slice][r][n] = outliers[r][0];
  }
  __syncthreads();
  const int r = threadIdx.x / block_rows;
  if (r >= product.rows || n0 + n >= product.N) return;
  int accumulator = 0;
  float outlier_sum = 0.0f;
  for (int s = 0; s < slices; s++) {
    accumulator += shared.accumulators[s][r][n];
    outlier_sum += shared.outliers[s][r][n];
  }
  epilogue.store(r, n0 + n, accumulator, outlier_sum);
}

template <class Epilogue>
SIMT_DEVICE void int8_few(const ms_int8_product &product, const Epilogue &epilogue, Int8FewShared &shared) {
  if (product.rows == 1) return int8_few_rows<1>(product, epilogue, shared);
  if (product.rows <= 4) return int8_few_rows<4>(product, epilogue, shared);
  int8_few_rows<few_rows>(product, epilogue, shared);
}

// Words word0 … word0 + 15 of 64 rows of CA and of 64 rows of CB (four packed blocks); zeros where there are none.
SIMT_DEVICE void load_product_tile(const ms_int8_product &product, int64_t t0, int64_t n0, int64_t word0,
                                   Int8TileShared &shared) {
#pragma unroll
  for (int i = 0; i < product_tile * tile_words / 256; i++) {
    const int index = threadIdx.x + i * 256;
    const int row = index / tile_words, word = index % tile_words;
    const bool in_CA = t0 + row < product.rows && word0 + word < product.words;
    shared.CA[row][word] = in_CA ? product.CA[(t0 + row) * product.CA_stride + word0 + word] : 0;
    const int block = index / 256 * block_rows, line = index % 256 / block_rows, n = index % block_rows;
    const bool in_CB = n0 + block < product.N;
    shared.CB[line][block + n] = in_CB ? block_words(product.CB, product.K, n0 + block)[(word0 + line) * block_rows + n] : 0;
  }
}

// By 256 threads; one owns the outputs (y + 16 i, x + 16 j).
template <class Epilogue>
SIMT_DEVICE void int8_tiles(const ms_int8_product &product, const Epilogue &epilogue, Int8TileShared &shared) {
  const int64_t t0 = static_cast<int64_t>(blockIdx.y) * product_tile, n0 = static_cast<int64_t>(blockIdx.x) * product_tile;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  int sum[outputs_each][outputs_each] = {};
  for (int64_t word0 = 0; word0 < product.words; word0 += tile_words) {
    load_product_tile(product, t0, n0, word0, shared);
    __syncthreads();
#pragma unroll
    for (int word = 0; word < tile_words; word++) {
#pragma unroll
      for (int i = 0; i < outputs_each; i++) {
#pragma unroll
        for (int j = 0; j < outputs_each; j++) {
          sum[i][j] = __dp4a(shared.CA[y + 16 * i][word], shared.CB[word][x + 16 * j], sum[i][j]);
        }
      }
    }
    __syncthreads();
  }
  // Outputs beyond the last row or column repeat it, and are not stored.
  int64_t t[outputs_each], n[outputs_each];
#pragma unroll
  for (int i = 0; i < outputs_each; i++) {
    t[i] = min(t0 + y + 16 * i, product.rows - 1);
    n[i] = min(n0 + x + 16 * i, product.N - 1);
  }
  float outliers[outputs_each][outputs_each] = {};
  epilogue.add_outliers(outliers, t, n, 0, 1);
#pragma unroll
  for (int i = 0; i < outputs_each; i++) {
#pragma unroll
    for (int j = 0; j < outputs_each; j++) {
      const bool exists = t[i] == t0 + y + 16 * i && n[j] == n0 + x + 16 * j;
      if (exists) epilogue.store(t[i], n[j], sum[i][j], outliers[i][j]);
    }
  }
}
