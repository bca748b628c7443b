// The int8 products (int8_linear, int8_matmul) of a vector instruction set: activations as panels, weights packed, work cut
// into tasks. An instruction set gives a Kernel:
//   max_rows                rows of a tile (with 32 columns) that its registers hold
//   activation_xor          128 where it takes activations as u8 = s8 + 128, else 0
//   products_per_cycle      int8 multiplications, for cutting work
//   dot(rows, panel, w0, w1, quads, ahead, tile)   tile [rows][32] = the exact dot products with two packed blocks; weights are
//                           prefetched `ahead` bytes before they are read
//   dot_once(rows, panel, w0, w1, quads, tile)     the same where this is the weights' only use: they come from memory
//   dot_strided(a, w, K)    of two plain rows
// A panel holds a group of rows as [K/4][rows][4], K padded to 64; all groups have one height, the last repeats its last row.
//
// Loops: chunks of packed blocks, in them row blocks (as many rows as have their panels in the second-level cache), in them
// pairs of packed blocks, in them row groups: weights come from memory once, from the third-level cache for the other row
// blocks and from the second-level cache for the other groups.
#pragma once
#include <stdint.h>
#include <string.h>

#include "int8_epilogue.h"
#include "kernels.h"
#include "packed_blocks.h"
#include "tasks.h"

namespace {

// Panels of a row block, beside two pairs of packed blocks in a second-level cache of 1 MiB; but not so few rows that reading
// weights takes longer than computing on them.
constexpr int64_t row_block_bytes = 384 * 1024;
constexpr int64_t row_block_min = 48;
// Bytes a core reads from memory per cycle, about; decides how work is cut, nothing else.
constexpr double read_bytes_per_cycle = 10;

// How far ahead the first row group prefetches weights, bytes; the second one fetches the next pair while it computes on
// this one.
constexpr int64_t stream_ahead = 2048;

struct int8_operands {
  int64_t rows, K, N;
  const int8_t *CA;
  int64_t CA_stride;
  const int8_t *packed;  // CB
  uint8_t *panels;       // round_up(rows, 48) * round_up(K, 64)
};

template <class Call>
uint8_t *packed_scratch(const Call &call) {
  return call.scratch + round_up(call.rows, 48) * round_up(call.K, tile_columns) + 4096;
}

// CB as packed blocks: as it comes, or packed into scratch.
template <class L, class Call>
const int8_t *packed_weight(const Call &call) {
  if (call.packed) return call.CB;
  int8_t *packed = reinterpret_cast<int8_t *>(packed_scratch(call));
  pack_matrix<L>(call.CB, call.CB_stride, call.N, call.K, packed);
  return packed;
}

template <class L, class Kernel, class Finish>
class int8_product {
 public:
  int8_product(const int8_operands &operands, const Finish &finish) : in_(operands), finish_(finish) {
    groups_ = ceil_div(in_.rows, Kernel::max_rows);
    height_ = ceil_div(in_.rows, groups_);
    groups_ = ceil_div(in_.rows, height_);
    row_blocks_ = ceil_div(groups_, larger(ceil_div(row_block_min, height_), row_block_bytes / panel_bytes()));
    groups_per_block_ = ceil_div(groups_, row_blocks_);
  }

  void run() const {
    for_each_range(groups_, static_cast<double>(height_ * in_.K) * 0.5, [&](int64_t first, int64_t end) {
      for (int64_t group = first; group < end; group++) fill_panel(group);
      finish_.prepare_rows(first * height_, smaller(in_.rows, end * height_));
    });
    const int64_t pairs = ceil_div(in_.N, pair_columns);
    const double weights = static_cast<double>(pair_columns * in_.K);
    const double reading = weights / read_bytes_per_cycle;
    const double computing = weights * static_cast<double>(groups_per_block_ * height_) / Kernel::products_per_cycle;
    const int64_t per_task = units_per_task(pairs * row_blocks_, reading > computing ? reading : computing);
    // Tasks that follow each other take the same weights, for different rows.
    for_each_task(row_blocks_ * ceil_div(pairs, per_task), [&](int64_t index) {
      const int64_t first = index / row_blocks_ * per_task;
      multiply(index % row_blocks_, first, smaller(pairs, first + per_task));
    });
  }

 private:
  int64_t panel_bytes() const { return height_ * round_up(in_.K, tile_columns); }

  // Rows by 4 · width bytes at a time: their dwords transposed, `height` of each column stored.
  void fill_panel(int64_t group) const {
    constexpr int64_t span = L::width * 4;
    uint8_t *to = in_.panels + group * panel_bytes();
    const int8_t *row[Kernel::max_rows];
    for (int64_t r = 0; r < height_; r++) row[r] = in_.CA + smaller(group * height_ + r, in_.rows - 1) * in_.CA_stride;
    for (int64_t k = 0; k < round_up(in_.K, tile_columns); k += span) {
      typename L::floats columns[L::width];
      for (int64_t r = 0; r < L::width; r++) {
        columns[r] = r < Kernel::max_rows && r < height_ ? load_bytes(row[r], k) : L::zero();
      }
      L::transpose(columns);
      for (int64_t q = 0; q < L::width; q++, to += height_ * 4) {
        L::store_partial(reinterpret_cast<float *>(to), columns[q], height_);
      }
    }
  }

  // 4 · width bytes of a row from k on, as the kernel takes them, zero beyond K.
  typename L::floats load_bytes(const int8_t *row, int64_t k) const {
    constexpr int64_t span = L::width * 4;
    alignas(64) int8_t bytes[span] = {};
    if (k + span > in_.K && k < in_.K) memcpy(bytes, row + k, static_cast<size_t>(in_.K - k));
    return L::flip_bytes(reinterpret_cast<const float *>(k + span <= in_.K ? row + k : bytes), Kernel::activation_xor);
  }

  // Row groups of one row block × pairs first … end - 1.
  void multiply(int64_t row_block_index, int64_t first, int64_t end) const {
    const int64_t bytes = block_bytes(in_.K), quads = block_tiles(in_.K) * 16, blocks = ceil_div(in_.N, block_rows);
    const int64_t group0 = row_block_index * groups_per_block_, group_end = smaller(groups_, group0 + groups_per_block_);
    alignas(64) int32_t tile[Kernel::max_rows * pair_columns];
    for (int64_t pair = first; pair < end; pair++) {
      const int8_t *w0 = in_.packed + pair * 2 * bytes;
      const int8_t *w1 = pair * 2 + 1 < blocks ? w0 + bytes : w0;
      const typename Finish::pair columns(finish_, pair * pair_columns);
      for (int64_t group = group0; group < group_end; group++) {
        const int64_t row0 = group * height_;
        const uint8_t *panel = in_.panels + group * panel_bytes();
        const int64_t ahead = group == group0 + 1 ? 2 * bytes : stream_ahead;
        if (group_end - group0 == 1) Kernel::dot_once(static_cast<int>(height_), panel, w0, w1, quads, tile);
        else Kernel::dot(static_cast<int>(height_), panel, w0, w1, quads, ahead, tile);
        columns.finish(tile, row0, static_cast<int>(smaller(height_, in_.rows - row0)));
      }
    }
  }

  const int8_operands &in_;
  const Finish &finish_;
  int64_t groups_, height_, row_blocks_, groups_per_block_;
};

// One row over a strided weight: read where it lies. emit(n, accumulator).
template <class Kernel, class Call, class Emit>
void one_row_strided(const Call &call, const Emit &emit) {
  for_each_range(call.N, static_cast<double>(call.K) / read_bytes_per_cycle, [&](int64_t first, int64_t end) {
    for (int64_t n = first; n < end; n++) emit(n, Kernel::dot_strided(call.CA, call.CB + n * call.CB_stride, call.K));
  });
}

// What dequantize_and_add computes for one element, operation for operation, so that a row alone and in a batch gives the same bits.
inline float dequantize_one(const int8_linear_call &call, int64_t n, int32_t accumulator) {
  float outliers = 0;  // Σ x · CB · 2^-7
  for (int32_t i = 1; i <= call.outlier_cols[0]; i++) {
    const int64_t k = call.outlier_cols[i];
    if (call.per_row && fabsf(call.x[k]) < call.threshold) continue;
    outliers = __builtin_fmaf(call.x[k], static_cast<float>(call.CB[n * call.CB_stride + k]) * 0x1p-7f, outliers);
  }
  const double scale = call.SCB[n], bias = call.bias == nullptr ? 0.0 : load_float(call.bias, call.bias_dtype, n);
  const double products = accumulator * static_cast<double>(call.SCA[0]);
  const double value = __builtin_fma(products, scale * (1.0 / (127.0 * 127.0)), bias);
  const bool any = call.outlier_cols[0] > 0;
  return static_cast<float>(any ? __builtin_fma(static_cast<double>(outliers), scale * (128.0 / 127.0), value) : value);
}

template <class L, class Kernel>
void multiply_linear(const int8_linear_call *call) {
  if (call->rows == 1 && !call->packed) {
    one_row_strided<Kernel>(*call, [&](int64_t n, int32_t sum) { call->out[n] = dequantize_one(*call, n, sum); });
    return;
  }
  const int8_t *packed = packed_weight<L>(*call);
  const int8_operands operands{call->rows, call->K, call->N, call->CA, call->CA_stride, packed, call->scratch};
  const dequantize_and_add<L> finish(*call, packed);
  int8_product<L, Kernel, dequantize_and_add<L>>(operands, finish).run();
}

template <class L, class Kernel>
void multiply_int8(const int8_matmul_call *call) {
  if (call->rows == 1 && !call->packed) {
    one_row_strided<Kernel>(*call, [&](int64_t n, int32_t sum) { call->out[n] = sum; });
    return;
  }
  const int8_t *packed = packed_weight<L>(*call);
  const int8_operands operands{call->rows, call->K, call->N, call->CA, call->CA_stride, packed, call->scratch};
  const store_accumulators<L> finish{*call};
  int8_product<L, Kernel, store_accumulators<L>>(operands, finish).run();
}

}  // namespace
