// The packed int8 layout (MS_PACKED_INT8 of backend.h) in kernels. A packed block holds 16 rows as lines of 16 words, line k /
// 4 and word n holding columns k … k + 3 of row n; behind them stand the 16 row sums.
#pragma once
#include "../simt/simt.h"

static constexpr int block_rows = 16;
static constexpr int tile_columns = 64;

SIMT_DEVICE int64_t tiles_of(int64_t K) { return (K + tile_columns - 1) / tile_columns; }
SIMT_DEVICE int64_t block_bytes(int64_t K) { return tiles_of(K) * tile_columns * block_rows + block_rows * 4; }

// The first word of the block that holds row n.
SIMT_DEVICE int32_t *block_words(int8_t *packed, int64_t K, int64_t n) {
  return reinterpret_cast<int32_t *>(packed + n / block_rows * block_bytes(K));
}
SIMT_DEVICE const int32_t *block_words(const int8_t *packed, int64_t K, int64_t n) {
  return reinterpret_cast<const int32_t *>(packed + n / block_rows * block_bytes(K));
}

// Where (n, k) lies, in bytes.
SIMT_DEVICE int64_t packed_offset(int64_t K, int64_t n, int64_t k) {
  return n / block_rows * block_bytes(K) + k / 4 * 64 + n % block_rows * 4 + k % 4;
}

// Writes the packed block that begins at row n0, by a whole block of threads (a multiple of 16): byte(n, k) gives its elements.
// Absent rows and columns become zero.
template <class Byte>
SIMT_DEVICE void write_packed_block(int8_t *packed, int64_t N, int64_t K, int64_t n0, const Byte &byte) {
  __shared__ int sums[block_rows];
  if (threadIdx.x < block_rows) sums[threadIdx.x] = 0;
  __syncthreads();
  int32_t *words = block_words(packed, K, n0);
  const int64_t lines = tiles_of(K) * block_rows, row = threadIdx.x % block_rows;
  int sum = 0;
  for (int64_t line = threadIdx.x / block_rows; line < lines; line += blockDim.x / block_rows) {
    uint32_t word = 0;
    for (int i = 0; i < 4; i++) {
      const int64_t k = line * 4 + i;
      if (n0 + row < N && k < K) word |= static_cast<uint32_t>(static_cast<uint8_t>(byte(n0 + row, k))) << 8 * i;
    }
    words[line * block_rows + row] = static_cast<int32_t>(word);
    sum = __dp4a(static_cast<int32_t>(word), 0x01010101, sum);
  }
  atomicAdd(&sums[row], sum);
  __syncthreads();
  if (threadIdx.x < block_rows) words[lines * block_rows + threadIdx.x] = sums[threadIdx.x];
}

// A tile of 16 rows × 64 columns on its way between the layouts, which are each read and written along their own lines.
struct Int8Tile {
  int32_t words[block_rows][tile_columns / 4 + 1];  // [n][k / 4]; the last column keeps the rows in different banks
};

SIMT_DEVICE int8_t tile_byte(const Int8Tile &tile, int n, int k) {
  return static_cast<int8_t>(static_cast<uint32_t>(tile.words[n][k / 4]) >> 8 * (k % 4));
}

// By 256 threads; a barrier has to follow.
SIMT_DEVICE void load_packed_tile(Int8Tile &tile, const int8_t *packed, int64_t K, int64_t n0, int64_t k0) {
  const int line = threadIdx.x / block_rows, n = threadIdx.x % block_rows;
  tile.words[n][line] = block_words(packed, K, n0)[(k0 / 4 + line) * block_rows + n];
}

// calls body(n, k) for the tile's elements that lie in [N, K], n and k counted from the tile's first.
template <class Body>
SIMT_DEVICE void each_of_tile(int64_t N, int64_t K, int64_t n0, int64_t k0, const Body &body) {
  for (int i = threadIdx.x; i < block_rows * tile_columns; i += blockDim.x) {
    const int n = i / tile_columns, k = i % tile_columns;
    if (n0 + n < N && k0 + k < K) body(n, k);
  }
}
