// int8_weight_linear over AMX-BF16 tiles, or their plain twin (tiles.h), for many rows: a strip (bfloat16_strips.h) is two
// columns of B tiles as it lies, activations become A tiles, [row tile][K/32][16][32] in bfloat16, absent rows and columns
// zero. Floor: 2 · M · N · K / peak of TDPBF16PS, half that of TDPBSSD. Not measured on a processor that has it.
#pragma once
#include <stdint.h>

#include "bfloat16_strips.h"

namespace {

template <class Tiles>
struct bfloat16_tile_dots {
  using element = uint32_t;  // a pair
  using registers = Tiles;
  static constexpr int panel_rows = 2 * block_rows;
  static constexpr int strip_columns = bfloat16_strip_columns;
  static constexpr int64_t depth = 512;  // 32 KiB a strip
  static constexpr int64_t rows_at_once = 480;
  static constexpr double products_per_cycle = 400;
  static constexpr int64_t tile_k = 32;
  static constexpr int64_t tile_pairs = block_rows * tile_k / 2;
  static constexpr int64_t strip_stride = strip_columns * 4;  // bytes

  const int8_weight_linear_call &call;
  const int8_t *packed;

  int64_t tiles_of_row() const { return ceil_div(call.K, tile_k); }
  uint32_t *row_tile(int64_t t) const {
    return reinterpret_cast<uint32_t *>(call.scratch) + t / block_rows * tiles_of_row() * tile_pairs;
  }

  void fill_row_tile(int64_t t) const {
    uint32_t *to = row_tile(t);
    for (int64_t k = 0; k < call.K; k += tile_k) {
      for (int64_t r = 0; r < block_rows; r++, to += pair_lanes) {
        const bool absent = t + r >= call.rows;
        _mm512_storeu_si512(to, absent ? _mm512_setzero_si512() : bfloat16_pairs(call.x + (t + r) * call.x_stride, k, call.K));
      }
    }
  }

  void fill_row_tiles() const {
    for_each_range(ceil_div(call.rows, block_rows), static_cast<double>(block_rows * call.K), [&](int64_t first, int64_t end) {
      for (int64_t tile = first; tile < end; tile++) fill_row_tile(tile * block_rows);
    });
  }

  // To whole tiles: the packed layout has zeros there.
  void pack(const strip_range &range, uint32_t *strip) const {
    pack_bfloat16_strip(call, packed, {range.n0, range.k0, round_up(range.count, tile_k)}, strip);
  }

  void tile(registers &tiles, int rows, int64_t t, const strip_range &range, const strip_range &next,
            const uint32_t *strip) const {
    float *sums = reinterpret_cast<float *>(const_cast<uint32_t *>(strip)) + depth / 2 * strip_columns;
    if (rows > block_rows) dots<2>(tiles, t, range, next, strip, sums);
    else dots<1>(tiles, t, range, next, strip, sums);
    constexpr int chunk = 8;  // rows that take their scales from memory together
    int r = 0;
    for (; r + chunk <= rows; r += chunk) add_rows<chunk>(t + r, range, sums + r * strip_columns);
    for (; r < rows; r++) add_rows<1>(t + r, range, sums + r * strip_columns);
  }

  template <int rows>
  void add_rows(int64_t t, const strip_range &range, const float *sums) const {
    __m512 row[rows][2];
    unroll<rows>([&](auto r) {
      row[r][0] = lanes::load(sums + r * strip_columns);
      row[r][1] = lanes::load(sums + r * strip_columns + block_rows);
    });
    add_to_output<lanes, rows>(call, t, range.n0, range.k0 == 0, row);
  }

  // One or two row tiles × 32 columns: sums [rows][32]. Tiles 0 … 3: sums, 4 and 5: activations, 6 and 7: weights.
  template <int count>
  void dots(Tiles &tiles, int64_t t, const strip_range &range, const strip_range &next, const uint32_t *strip,
            float *sums) const {
    unroll<2 * count>([&](auto i) { tiles.template zero<i>(); });
    const int64_t steps = ceil_div(range.count, tile_k), next_row_tile = tiles_of_row() * tile_pairs;
    const uint32_t *a = row_tile(t) + range.k0 / tile_k * tile_pairs;
    const int8_t *ahead[2] = {lines_of(call, packed, next, 0), lines_of(call, packed, next, block_rows)};
    for (int64_t step = 0; step < steps; step++, a += tile_pairs, strip += tile_k / 2 * strip_columns) {
      tiles.template load<4>(a, 64);
      tiles.template load<6>(strip, strip_stride);
      tiles.template dot_bfloat16<0, 4, 6>();
      tiles.template load<7>(strip + block_rows, strip_stride);
      tiles.template dot_bfloat16<1, 4, 7>();
      if constexpr (count == 2) {
        tiles.template load<5>(a + next_row_tile, 64);
        tiles.template dot_bfloat16<2, 5, 6>();
        tiles.template dot_bfloat16<3, 5, 7>();
      }
      for (int64_t line = step * tile_k / 4; line < (step + 1) * tile_k / 4; line++) {
        __builtin_prefetch(ahead[0] + line * 64, 0, 2);
        __builtin_prefetch(ahead[1] + line * 64, 0, 2);
      }
    }
    tiles.template store<0>(sums, strip_stride);
    tiles.template store<1>(sums + block_rows, strip_stride);
    if constexpr (count == 2) tiles.template store<2>(sums + block_rows * strip_columns, strip_stride);
    if constexpr (count == 2) tiles.template store<3>(sums + block_rows * strip_columns + block_rows, strip_stride);
  }
};

constexpr int64_t bfloat16_tile_rows_min = 12;

template <class Tiles>
void int8_weight_linear_by_tiles(const int8_weight_linear_call &call) {
  const bfloat16_tile_dots<Tiles> product{call, packed_weight<lanes>(call, behind_activations(call))};
  product.fill_row_tiles();
  multiply_strips(product, call.rows, call.K, call.N);
}

}  // namespace
