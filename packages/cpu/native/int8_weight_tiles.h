// int8_weight_linear in float32 over the lanes of one instruction set, the weight in packed blocks, two ways:
//   few rows   bytes are widened to float32 in registers as they come from memory, four columns of x repeated beside them; a
//              sum vector holds four partial sums of width / 4 columns. One row is bound by reading the weights, more by
//              fused multiply-adds.
//   many rows  strips unpacked as float32 [k][column] (strip_product.h).
// A strided weight is packed into scratch before, except for one row, which reads it where it lies.
// Each output is summed in an order that depends on K, on the layout and on whether rows are one, few or many.
#pragma once
#include <stdint.h>
#include <string.h>

#include "floats.h"
#include "kernels.h"
#include "packed_blocks.h"
#include "strip_product.h"
#include "tasks.h"
#include "unroll.h"

namespace {

// ---- few rows ----

template <class L>
struct widened_dots {
  using floats = typename L::floats;
  static constexpr int max_rows = L::width == 16 ? 6 : 2;  // 4 sums a row in registers
  static constexpr int64_t ahead = 8192;                   // bytes between a weight's prefetch and its use
  static constexpr int quads = 4;                          // vectors whose four partial sums each make one of columns

  const int8_weight_linear_call &call;
  const int8_t *packed;

  // x [rows] from k on, four columns of each, zero beyond K.
  template <int rows>
  struct last_columns {
    float x[rows][4] = {};
    last_columns(const int8_weight_linear_call &call, int64_t t) {
      const int64_t whole = call.K / 4 * 4;
      for (int r = 0; r < rows; r++) {
        for (int64_t k = whole; k < call.K; k++) x[r][k - whole] = call.x[(t + r) * call.x_stride + k];
      }
    }
  };

  // sums [parts][rows] of the columns from `lines` on (64 bytes apart) with rows t … of x.
  template <int rows, int parts>
  void dot(int64_t t, const int8_t *lines, floats (&out)[parts][rows]) const {
    constexpr int chains = rows * parts == 1 ? 2 : 1;  // to cover the latency of the multiply-add
    floats sums[chains][parts][rows][quads];
    const auto each = [](const auto &body) {
      unroll<parts>([&](auto p) { unroll<rows>([&](auto r) { unroll<quads>([&](auto i) { body(p, r, i); }); }); });
    };
    unroll<chains>([&](auto c) { each([&](auto p, auto r, auto i) { sums[c][p][r][i] = L::zero(); }); });
    const auto step = [&](auto c, const int8_t *line, const auto &x_of) {
      floats x[rows];
      unroll<rows>([&](auto r) { x[r] = L::repeat4(x_of(r)); });
      __builtin_prefetch(line + ahead);
      unroll<parts * quads>([&](auto v) {
        const floats weights = L::widen_bytes(line + v * L::width);
        unroll<rows>([&](auto r) {
          floats &sum = sums[c][v / quads][r][v % quads];
          sum = L::fmadd(x[r], weights, sum);
        });
      });
    };
    const float *x = call.x + t * call.x_stride;
    int64_t k = 0;
    for (; k + 4 * chains <= call.K; k += 4 * chains) {
      unroll<chains>([&](auto c) {
        step(c, lines + k * 16 + c * 64, [&](int r) { return x + r * call.x_stride + k + c * 4; });
      });
    }
    constexpr std::integral_constant<int, 0> first{};
    for (; k + 4 <= call.K; k += 4) step(first, lines + k * 16, [&](int r) { return x + r * call.x_stride + k; });
    if (k < call.K) {
      const last_columns<rows> last(call, t);
      step(first, lines + k * 16, [&](int r) { return last.x[r]; });
    }
    unroll<chains - 1>([&](auto c) {
      each([&](auto p, auto r, auto i) { sums[0][p][r][i] = L::add(sums[0][p][r][i], sums[c + 1][p][r][i]); });
    });
    unroll<parts>([&](auto p) { unroll<rows>([&](auto r) { out[p][r] = L::sum_quads(sums[0][p][r]); }); });
  }

  // The columns from n on, `parts` vectors of them, of rows t … t + rows - 1.
  template <int rows, int parts = 1>
  void columns(int64_t t, int64_t n, const int8_t *lines) const {
    floats sums[parts][rows];
    dot<rows, parts>(t, lines, sums);
    unroll<parts>([&](auto p) {
      const int64_t from = n + p * L::width, present = smaller(L::width, call.N - from);
      if (present <= 0) return;
      const floats scales = column_scales<L>(call, from, present), bias = load_bias<L>(call, from, present);
      unroll<rows>([&](auto r) {
        L::store_partial(call.out + (t + r) * call.out_stride + from, L::fmadd(sums[p][r], scales, bias), present);
      });
    });
  }

  template <int R>
  void columns_of(int rows, int64_t t, int64_t n, const int8_t *lines) const {
    if (rows == R) return columns<R>(t, n, lines);
    if constexpr (R > 1) columns_of<R - 1>(rows, t, n, lines);
  }

  // One packed block, all rows, in groups of one height as far as it goes; of one row all columns together, so that a line is
  // read once.
  void block(int64_t index) const {
    const int8_t *lines = packed + index * block_bytes(call.K);
    const int64_t n0 = index * block_rows, height = ceil_div(call.rows, ceil_div(call.rows, max_rows));
    if (call.rows == 1) return columns<1, block_rows / L::width>(0, n0, lines);
    for (int64_t n = n0; n < smaller(call.N, n0 + block_rows); n += L::width) {
      for (int64_t t = 0; t < call.rows; t += height) {
        columns_of<max_rows>(static_cast<int>(smaller(height, call.rows - t)), t, n, lines + (n - n0) * 4);
      }
    }
  }

  void run() const {
    const double bytes = static_cast<double>(block_rows * call.K);
    const double computing = bytes * static_cast<double>(call.rows) / L::width;
    for_each_range(ceil_div(call.N, block_rows), bytes / 10 > computing ? bytes / 10 : computing,
                   [&](int64_t first, int64_t end) {
                     for (int64_t index = first; index < end; index++) block(index);
                   });
  }
};

// One row over a strided weight.
template <class L>
void one_row_of_bytes(const int8_weight_linear_call &call) {
  for_each_range(call.N, static_cast<double>(call.K) / 10, [&](int64_t first, int64_t end) {
    for (int64_t n = first; n < end; n++) {
      const int8_t *row = call.CB + n * call.CB_stride;
      constexpr int chains = 4;
      typename L::floats sums[chains];
      unroll<chains>([&](auto i) { sums[i] = L::zero(); });
      int64_t k = 0;
      for (; k + chains * L::width <= call.K; k += chains * L::width) {
        unroll<chains>([&](auto i) {
          const int64_t at = k + i * L::width;
          sums[i] = L::fmadd(L::load(call.x + at), L::widen_bytes(row + at), sums[i]);
        });
      }
      float sum = L::sum(L::add(L::add(sums[0], sums[1]), L::add(sums[2], sums[3])));
      for (; k < call.K; k++) sum += call.x[k] * static_cast<float>(row[k]);
      const double bias = call.bias == nullptr ? 0.0 : load_float(call.bias, call.bias_dtype, n);
      call.out[n] = static_cast<float>(static_cast<double>(sum) * call.SCB[n] / 127.0 + bias);
    }
  });
}

// ---- many rows ----

// Where the columns from range.n0 + column on begin, at range.k0 (a multiple of 4). Columns past N are others that are there.
inline const int8_t *lines_of(const int8_weight_linear_call &call, const int8_t *packed, const strip_range &range,
                              int64_t column) {
  const int64_t n = range.n0 + column < call.N ? range.n0 + column : range.n0;
  return packed + n / block_rows * block_bytes(call.K) + range.k0 * 16 + n % block_rows * 4;
}

template <class L>
struct byte_strips {
  using floats = typename L::floats;
  using element = float;
  using registers = plain_registers;
  static constexpr int panel_rows = L::width == 16 ? 12 : 6;
  static constexpr int strip_columns = 2 * L::width;
  static constexpr int64_t depth = 256;  // 32 KiB a strip
  static constexpr int64_t rows_at_once = 480;
  static constexpr double products_per_cycle = 2 * L::width;

  const int8_weight_linear_call &call;
  const int8_t *packed;

  // strip[k - k0][column] = CB[n0 + column][k].
  void pack(const strip_range &range, float *strip) const {
    for (int half = 0; half < 2; half++) {
      const int8_t *line = lines_of(call, packed, range, half * L::width);
      float *to = strip + half * L::width;
      for (int64_t k = 0; k < range.count; k += 4, line += 64) {
        unroll<4>([&](auto j) { L::store(to + (k + j) * strip_columns, L::template bytes_of<j>(line)); });
      }
    }
  }

  void tile(registers &, int rows, int64_t t, const strip_range &range, const strip_range &, const float *strip) const {
    float_tile_of<L, panel_rows>(rows, call, t, range, strip);
  }
};

// CB as packed blocks: as it comes, or packed into `place`.
template <class L>
const int8_t *packed_weight(const int8_weight_linear_call &call, uint8_t *place) {
  if (call.packed) return call.CB;
  int8_t *packed = reinterpret_cast<int8_t *>(place);
  pack_matrix<L>(call.CB, call.CB_stride, call.N, call.K, packed);
  return packed;
}

// From this many rows on unpacking a strip costs less than it saves.
constexpr int64_t byte_strip_rows_min = 24;

template <class L>
void int8_weight_linear_by_lanes(const int8_weight_linear_call &call) {
  if (call.rows == 1 && !call.packed) {
    one_row_of_bytes<L>(call);
    return;
  }
  const int8_t *packed = packed_weight<L>(call, call.scratch);
  if (call.rows < byte_strip_rows_min) widened_dots<L>{call, packed}.run();
  else multiply_strips(byte_strips<L>{call, packed}, call.rows, call.K, call.N);
}

}  // namespace
