// int8_linear and int8_matmul over AMX tiles, or their plain twin (tiles.h): a packed block of the weight is a row of B
// tiles as it lies; activations become A tiles, [row tile][K/64][16][64], rows padded to 16 with zeros. Floor: 2 · M · N ·
// K / peak of TDPBSSD; 4 tile loads per 4 products bound any such loop at about 0.81 of it.
//
// Loops: blocks of 256 rows (A tiles in the second-level cache), in them pairs of packed blocks, in them depths of 512 (32
// columns of weights, 16 KiB, in the first-level cache), in them pairs of row tiles: 2 × 2 sums in tile registers, spilled
// between depths into the thread's workspace. While one depth of weights is used the next is prefetched. For 16 rows and
// fewer the vector kernels win.
#pragma once
#include <stdint.h>
#include <string.h>

#include "int8_epilogue.h"
#include "int8_panels.h"
#include "packed_blocks.h"
#include "tasks.h"

namespace {

constexpr int64_t tiled_rows_min = 17;

template <class Tiles, class Finish>
class tile_product {
 public:
  tile_product(const int8_operands &operands, const Finish &finish)
      : in_(operands),
        finish_(finish),
        tiles_(block_tiles(operands.K)),
        row_tiles_(ceil_div(operands.rows, block_rows)),
        row_blocks_(ceil_div(row_tiles_, row_block_tiles)),
        row_tiles_per_block_(round_up(ceil_div(row_tiles_, row_blocks_), 2)) {}

  void run() const {
    for_each_range(row_tiles_, static_cast<double>(in_.K) * 4, [&](int64_t first, int64_t end) {
      for (int64_t tile = first; tile < end; tile++) fill_row_tile(tile);
      finish_.prepare_rows(first * block_rows, smaller(in_.rows, end * block_rows));
    });
    const int64_t pairs = ceil_div(in_.N, pair_columns);
    const double weights = static_cast<double>(pair_columns * in_.K);
    const double reading = weights / read_bytes_per_cycle;
    const double computing = weights * static_cast<double>(row_tiles_per_block_ * block_rows) / products_per_cycle;
    const int64_t per_task = units_per_task(pairs * row_blocks_, reading > computing ? reading : computing);
    // Tasks that follow each other take the same weights, for different rows.
    for_each_task(row_blocks_ * ceil_div(pairs, per_task), [&](int64_t index) {
      const int64_t first = index / row_blocks_ * per_task;
      multiply(index % row_blocks_ * row_tiles_per_block_, first, smaller(pairs, first + per_task));
    });
  }

 private:
  static constexpr int64_t row_block_tiles = 16;
  static constexpr int64_t depth_tiles = 8;
  static constexpr int64_t sums_stride = pair_columns * 4;
  static constexpr double products_per_cycle = 800;
  static_assert(row_block_tiles * block_rows * sums_stride <= tile_sums_bytes);

  // One depth of the weights of a pair of blocks, and the one that follows it.
  struct weight_depth {
    const int8_t *block[2], *next[2];
    int64_t tiles, next_lines;
  };

  int8_t *row_tile(int64_t index) const { return reinterpret_cast<int8_t *>(in_.panels) + index * tiles_ * tile_bytes; }

  void fill_row_tile(int64_t index) const {
    int8_t *to = row_tile(index);
    for (int64_t k = 0; k < in_.K; k += tile_columns, to += tile_bytes) {
      const int64_t columns = smaller(tile_columns, in_.K - k), rows = smaller(block_rows, in_.rows - index * block_rows);
      if (columns < tile_columns || rows < block_rows) memset(to, 0, tile_bytes);
      for (int64_t r = 0; r < rows; r++) {
        memcpy(to + r * tile_columns, in_.CA + (index * block_rows + r) * in_.CA_stride + k, static_cast<size_t>(columns));
      }
    }
  }

  // A row block from row tile `first_tile` × pairs first … end - 1.
  void multiply(int64_t first_tile, int64_t first, int64_t end) const {
    Tiles tiles;
    int32_t *sums = static_cast<int32_t *>(thread_workspace());
    const int64_t row_tiles = smaller(row_tiles_per_block_, row_tiles_ - first_tile), row0 = first_tile * block_rows;
    for (int64_t pair = first; pair < end; pair++) {
      for (int64_t k = 0; k < tiles_; k += depth_tiles) multiply_depth(tiles, first_tile, row_tiles, pair, k, sums);
      const typename Finish::pair columns(finish_, pair * pair_columns);
      columns.finish(sums, row0, static_cast<int>(smaller(row_tiles * block_rows, in_.rows - row0)));
    }
  }

  weight_depth weights_at(int64_t pair, int64_t k) const {
    const int64_t bytes = block_bytes(in_.K), blocks = ceil_div(in_.N, block_rows);
    const int8_t *block = in_.packed + pair * 2 * bytes;
    const int64_t second = pair * 2 + 1 < blocks ? bytes : 0;  // absent: the first again, for nothing
    const int64_t tiles = smaller(depth_tiles, tiles_ - k), left = tiles_ - k - tiles;
    const int8_t *from = block + k * tile_bytes, *next = left > 0 ? from + tiles * tile_bytes : block + 2 * bytes;
    const bool last = left == 0 && pair * 2 + 2 >= blocks;
    const int64_t next_tiles = last ? 0 : smaller(depth_tiles, left > 0 ? left : tiles_);
    return {{from, from + second}, {next, next + second}, tiles, next_tiles * 16};
  }

  void multiply_depth(Tiles &tiles, int64_t first_tile, int64_t row_tiles, int64_t pair, int64_t k, int32_t *sums) const {
    const weight_depth weights = weights_at(pair, k);
    const int64_t per_step = ceil_div(weights.next_lines, ceil_div(row_tiles, 2) * weights.tiles);
    int64_t line = 0;
    const auto prefetch = [&] {
      for (const int64_t stop = smaller(weights.next_lines, line + per_step); line < stop; line++) {
        __builtin_prefetch(weights.next[0] + line * 64, 0, 2);
        __builtin_prefetch(weights.next[1] + line * 64, 0, 2);
      }
    };
    for (int64_t tile = 0; tile < row_tiles; tile += 2, sums += 2 * block_rows * pair_columns) {
      const int8_t *a = row_tile(first_tile + tile) + k * tile_bytes;
      if (tile + 2 <= row_tiles) multiply_rows<2>(tiles, a, weights, k == 0, sums, prefetch);
      else multiply_rows<1>(tiles, a, weights, k == 0, sums, prefetch);
    }
  }

  // One or two row tiles × 32 columns, one depth. Tiles 0 … 3: sums, 4 and 5: activations, 6 and 7: weights.
  template <int count, class Prefetch>
  void multiply_rows(Tiles &tiles, const int8_t *a, const weight_depth &weights, bool start, int32_t *sums,
                     const Prefetch &prefetch) const {
    int32_t *lower = sums + block_rows * pair_columns;
    if (start) {
      tiles.template zero<0>();
      tiles.template zero<1>();
      if constexpr (count == 2) tiles.template zero<2>();
      if constexpr (count == 2) tiles.template zero<3>();
    } else {
      tiles.template load<0>(sums, sums_stride);
      tiles.template load<1>(sums + block_rows, sums_stride);
      if constexpr (count == 2) tiles.template load<2>(lower, sums_stride);
      if constexpr (count == 2) tiles.template load<3>(lower + block_rows, sums_stride);
    }
    const int64_t next_row_tile = tiles_ * tile_bytes;
    for (int64_t k = 0; k < weights.tiles * tile_bytes; k += tile_bytes) {
      tiles.template load<4>(a + k, tile_columns);
      tiles.template load<6>(weights.block[0] + k, tile_columns);
      tiles.template dot<0, 4, 6>();
      tiles.template load<7>(weights.block[1] + k, tile_columns);
      tiles.template dot<1, 4, 7>();
      if constexpr (count == 2) {
        tiles.template load<5>(a + next_row_tile + k, tile_columns);
        tiles.template dot<2, 5, 6>();
        tiles.template dot<3, 5, 7>();
      }
      prefetch();
    }
    tiles.template store<0>(sums, sums_stride);
    tiles.template store<1>(sums + block_rows, sums_stride);
    if constexpr (count == 2) tiles.template store<2>(lower, sums_stride);
    if constexpr (count == 2) tiles.template store<3>(lower + block_rows, sums_stride);
  }

  const int8_operands &in_;
  const Finish &finish_;
  const int64_t tiles_, row_tiles_, row_blocks_, row_tiles_per_block_;
};

template <class Tiles, class L>
void multiply_linear_tiled(const int8_linear_call &call) {
  const int8_t *packed = packed_weight<L>(call);
  const int8_operands operands{call.rows, call.K, call.N, call.CA, call.CA_stride, packed, call.scratch};
  const dequantize_and_add<L> finish(call, packed);
  tile_product<Tiles, dequantize_and_add<L>>(operands, finish).run();
}

template <class Tiles, class L>
void multiply_int8_tiled(const int8_matmul_call &call) {
  const int8_operands operands{call.rows, call.K, call.N, call.CA, call.CA_stride, packed_weight<L>(call), call.scratch};
  const store_accumulators<L> finish{call};
  tile_product<Tiles, store_accumulators<L>>(operands, finish).run();
}

}  // namespace
