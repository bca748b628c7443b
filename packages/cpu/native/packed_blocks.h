// The packed int8 layout of backend.h (MS_PACKED_INT8) for kernels: addresses, packing and unpacking of one block, row
// sums. A block holds 16 rows as tiles of 64 columns; a tile is 16 lines of 64 bytes, [k/4][n][k%4], so packing transposes
// 16 × 16 dwords.
#pragma once
#include <stdint.h>
#include <string.h>

#include "tasks.h"
#include "unroll.h"

namespace {

constexpr int block_rows = 16;
constexpr int tile_columns = 64;
constexpr int tile_bytes = block_rows * tile_columns;

inline int64_t block_tiles(int64_t K) { return ceil_div(K, tile_columns); }
inline int64_t block_bytes(int64_t K) { return block_tiles(K) * tile_bytes + block_rows * 4; }

// 16 rows of 64 bytes ↔ 16 lines of 16 dwords; strides in bytes. Moves of dwords as floats keep every bit.
template <class L>
inline void transpose_tile(const int8_t *from, int64_t from_stride, int8_t *to, int64_t to_stride) {
  for (int i = 0; i < block_rows; i += L::width) {
    for (int j = 0; j < block_rows; j += L::width) {
      typename L::floats rows[L::width];
      const int8_t *source = from + i * from_stride + j * 4;
      unroll<L::width>([&](auto r) { rows[r] = L::load(reinterpret_cast<const float *>(source + r * from_stride)); });
      L::transpose(rows);
      int8_t *target = to + j * to_stride + i * 4;
      unroll<L::width>([&](auto r) { L::store(reinterpret_cast<float *>(target + r * to_stride), rows[r]); });
    }
  }
}

// The 16 int32 sums that close a block, from its lines.
template <class L>
inline void write_row_sums(int8_t *block, int64_t tiles) {
  int32_t *sums = reinterpret_cast<int32_t *>(block + tiles * tile_bytes);
  for (int half = 0; half < block_rows; half += L::width) {
    typename L::ints total = L::zero_ints();
    for (int64_t line = 0; line < tiles * 16; line++) total = L::add_quads(total, block + line * 64 + half * 4);
    L::store_ints(sums + half, total);
  }
}

// Rows (1 … 16) of K bytes → one block; absent rows and columns become zero.
template <class L>
inline void pack_block(const int8_t *source, int64_t stride, int64_t rows, int64_t K, int8_t *block) {
  for (int64_t k = 0; k < K; k += tile_columns, block += tile_bytes) {
    const int64_t columns = smaller(tile_columns, K - k);
    if (rows == block_rows && columns == tile_columns) {
      transpose_tile<L>(source + k, stride, block, 64);
      continue;
    }
    alignas(64) int8_t bytes[block_rows][tile_columns] = {};
    for (int64_t n = 0; n < rows; n++) memcpy(bytes[n], source + n * stride + k, static_cast<size_t>(columns));
    transpose_tile<L>(bytes[0], 64, block, 64);
  }
  write_row_sums<L>(block - block_tiles(K) * tile_bytes, block_tiles(K));
}

// One block → rows (1 … 16) of K bytes.
template <class L>
inline void unpack_block(const int8_t *block, int64_t rows, int64_t K, int8_t *destination, int64_t stride) {
  for (int64_t k = 0; k < K; k += tile_columns, block += tile_bytes) {
    const int64_t columns = smaller(tile_columns, K - k);
    if (rows == block_rows && columns == tile_columns) {
      transpose_tile<L>(block, 64, destination + k, stride);
      continue;
    }
    alignas(64) int8_t bytes[block_rows][tile_columns];
    transpose_tile<L>(block, 64, bytes[0], 64);
    for (int64_t n = 0; n < rows; n++) memcpy(destination + n * stride + k, bytes[n], static_cast<size_t>(columns));
  }
}

// A strided int8 matrix [N, K] → packed, and back.
template <class L>
void pack_matrix(const int8_t *source, int64_t stride, int64_t N, int64_t K, int8_t *packed) {
  for_each_range(ceil_div(N, block_rows), static_cast<double>(K) * 4, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; b++) {
      const int64_t n = b * block_rows;
      pack_block<L>(source + n * stride, stride, smaller(block_rows, N - n), K, packed + b * block_bytes(K));
    }
  });
}

template <class L>
void unpack_matrix(const int8_t *packed, int64_t N, int64_t K, int8_t *destination, int64_t stride) {
  for_each_range(ceil_div(N, block_rows), static_cast<double>(K) * 4, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; b++) {
      const int64_t n = b * block_rows;
      unpack_block<L>(packed + b * block_bytes(K), smaller(block_rows, N - n), K, destination + n * stride, stride);
    }
  });
}

}  // namespace
