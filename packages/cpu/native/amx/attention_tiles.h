// The product of bfloat16 attention over AMX tiles, or their plain twin (tiles.h): two row tiles × two column tiles of sums at
// once. Not measured on a processor that has them.
#pragma once
#include "attention_bfloat16.h"
#include "tiles.h"

namespace {

template <class Tiles>
struct multiply_by_tiles {
  Tiles tiles;

  __m512i pairs(vfloat low, vfloat high) const { return pairs_of(low, high); }
  int rows_at_once(int64_t left) const { return left < most_block_rows ? (int)left : (int)most_block_rows; }

  template <bool ADD>
  void sums(int rows, const uint32_t *A, int64_t A_stride, const uint32_t *B, int64_t B_stride, int64_t pairs, int64_t columns,
            float *C, int64_t C_stride) {
    for (int64_t column = 0; column < columns; column += 32) {
      const bool two = column + 16 < columns;
      if (rows > 16 && two) block<ADD, 2, 2>(A, A_stride, B + column, B_stride, pairs, C + column, C_stride);
      else if (rows > 16) block<ADD, 2, 1>(A, A_stride, B + column, B_stride, pairs, C + column, C_stride);
      else if (two) block<ADD, 1, 2>(A, A_stride, B + column, B_stride, pairs, C + column, C_stride);
      else block<ADD, 1, 1>(A, A_stride, B + column, B_stride, pairs, C + column, C_stride);
    }
  }

  // Tiles 0 … 3: sums, 4 and 5: A, 6 and 7: B.
  template <bool ADD, int row_tiles, int column_tiles>
  void block(const uint32_t *A, int64_t A_stride, const uint32_t *B, int64_t B_stride, int64_t pairs, float *C,
             int64_t C_stride) {
    float *lower = C + 16 * C_stride;
    begin<ADD, 0>(C, C_stride);
    if constexpr (column_tiles == 2) begin<ADD, 1>(C + 16, C_stride);
    if constexpr (row_tiles == 2) begin<ADD, 2>(lower, C_stride);
    if constexpr (row_tiles == 2 && column_tiles == 2) begin<ADD, 3>(lower + 16, C_stride);
    for (int64_t pair = 0; pair < pairs; pair += 16, A += 16, B += 16 * B_stride) {
      tiles.template load<4>(A, A_stride * 4);
      tiles.template load<6>(B, B_stride * 4);
      tiles.template dot_bfloat16<0, 4, 6>();
      if constexpr (column_tiles == 2) {
        tiles.template load<7>(B + 16, B_stride * 4);
        tiles.template dot_bfloat16<1, 4, 7>();
      }
      if constexpr (row_tiles == 2) {
        tiles.template load<5>(A + 16 * A_stride, A_stride * 4);
        tiles.template dot_bfloat16<2, 5, 6>();
        if constexpr (column_tiles == 2) tiles.template dot_bfloat16<3, 5, 7>();
      }
    }
    tiles.template store<0>(C, C_stride * 4);
    if constexpr (column_tiles == 2) tiles.template store<1>(C + 16, C_stride * 4);
    if constexpr (row_tiles == 2) tiles.template store<2>(lower, C_stride * 4);
    if constexpr (row_tiles == 2 && column_tiles == 2) tiles.template store<3>(lower + 16, C_stride * 4);
  }

  template <bool ADD, int tile>
  void begin(const float *C, int64_t C_stride) {
    if constexpr (ADD) tiles.template load<tile>(C, C_stride * 4);
    else tiles.template zero<tile>();
  }
};

template <class Tiles>
void attention_by_tiles(const attention_tile *tile) {
  if (takes_bfloat16(*tile)) run_tile<bfloat16_product<multiply_by_tiles<Tiles>>>(tile);
  else run_tile<float_product>(tile);
}

}  // namespace
