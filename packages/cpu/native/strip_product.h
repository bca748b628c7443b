// Products of many rows of float activations with a weight matrix, for any kind of weights: strips of 32 or 16 weight rows
// (columns of the output) unpacked into the thread's workspace `depth` deep, tiles of a few rows of x by one strip in
// registers. Bound by multiply-adds. How a strip is unpacked and a tile is computed is the Kernel's (linear_tiles.h,
// int8_weight_tiles.h, avx512/int8_weight_linear_bfloat16.cc, amx/bfloat16_tiles.h):
//   element                     of a strip
//   panel_rows, strip_columns   of a tile
//   depth                       k per strip, so that it stays in the first-level cache
//   rows_at_once                of x, `depth` wide, in the second-level cache
//   products_per_cycle          for cutting work
//   registers                   made once a task: the tile registers of AMX, else nothing
//   pack(range, strip)          strip = the weights of the range
//   tile(registers, rows, t, range, next, strip)   adds their products with rows t … t + rows - 1 of x to the output, and may
//                               meanwhile prefetch the weights of the range `next`
// A tile is multiplied once a depth; the first one (k0 = 0) stores, the others add. Each output is summed in an order that
// depends on K alone.
#pragma once
#include <stdint.h>

#include "kernels.h"
#include "pool.h"
#include "tasks.h"
#include "unroll.h"

namespace {

// The columns from n0 on, k0 … k0 + count - 1 of them.
struct strip_range {
  int64_t n0, k0, count;
};

// Of kernels whose registers need no setting up.
struct plain_registers {};

// Rows t0 … t_end - 1 × strips first … end - 1.
template <class Kernel>
void multiply_strips_of(const Kernel &kernel, int64_t K, int64_t t0, int64_t t_end, int64_t first, int64_t end) {
  auto *strip = static_cast<typename Kernel::element *>(thread_workspace());
  [[maybe_unused]] typename Kernel::registers registers;
  const auto range_of = [&](int64_t s, int64_t k0) {
    return strip_range{s * Kernel::strip_columns, k0, smaller(Kernel::depth, K - k0)};
  };
  for (int64_t k0 = 0; k0 < K; k0 += Kernel::depth) {
    for (int64_t s = first; s < end; s++) {
      const strip_range range = range_of(s, k0);
      strip_range next = range;
      if (s + 1 < end) next = range_of(s + 1, k0);
      else if (k0 + Kernel::depth < K) next = range_of(first, k0 + Kernel::depth);
      kernel.pack(range, strip);
      for (int64_t t = t0; t < t_end; t += Kernel::panel_rows) {
        kernel.tile(registers, static_cast<int>(smaller(Kernel::panel_rows, t_end - t)), t, range, next, strip);
      }
    }
  }
}

template <class Kernel>
void multiply_strips(const Kernel &kernel, int64_t rows, int64_t K, int64_t N) {
  const int64_t strips = ceil_div(N, Kernel::strip_columns), row_blocks = ceil_div(rows, Kernel::rows_at_once);
  const int64_t block = round_up(ceil_div(rows, row_blocks), Kernel::panel_rows);
  const double cycles = static_cast<double>(block * K) * Kernel::strip_columns / Kernel::products_per_cycle;
  const int64_t per_task = units_per_task(strips * row_blocks, cycles), chunks = ceil_div(strips, per_task);
  for_each_task(row_blocks * chunks, [&](int64_t index) {
    const int64_t t = index / chunks * block, first = index % chunks * per_task;
    multiply_strips_of(kernel, K, t, smaller(rows, t + block), first, smaller(strips, first + per_task));
  });
}

template <class L, class Call>
typename L::floats load_bias(const Call &call, int64_t n, int64_t columns) {
  if (call.bias == nullptr) return L::zero();
  if (call.bias_dtype == MS_FLOAT16) return L::template load_as_partial<MS_FLOAT16>(call.bias, n, columns);
  if (call.bias_dtype == MS_BFLOAT16) return L::template load_as_partial<MS_BFLOAT16>(call.bias, n, columns);
  return L::template load_as_partial<MS_FLOAT32>(call.bias, n, columns);
}

// What the sums of columns n … are multiplied with: nothing, or the scales of int8 weights, SCB / 127.
template <class L>
typename L::floats column_scales(const linear_call &, int64_t, int64_t) {
  return L::set1(1.0f);
}
template <class L>
typename L::floats column_scales(const int8_weight_linear_call &call, int64_t n, int64_t columns) {
  const typename L::floats scales = L::load_partial(call.SCB + n, columns);
  const typename L::doubles single = L::set1_double(1.0 / 127.0);
  return L::narrow(L::mul(L::low(scales), single), L::mul(L::high(scales), single));
}

// sums [rows][2] of the columns n0 … of rows t …, scaled, plus the bias at the start, plus what is there later.
template <class L, int rows, class Call>
[[gnu::always_inline]] inline void add_to_output(const Call &call, int64_t t, int64_t n0, bool start,
                                                 const typename L::floats (&sums)[rows][2]) {
  using floats = typename L::floats;
  unroll<2>([&](auto half) {
    const int64_t n = n0 + half * L::width, columns = smaller(L::width, call.N - n);
    if (columns <= 0) return;
    const floats scales = column_scales<L>(call, n, columns), bias = start ? load_bias<L>(call, n, columns) : L::zero();
    unroll<rows>([&](auto r) {
      float *out = call.out + (t + r) * call.out_stride + n;
      const floats before = start ? bias : L::load_partial(out, columns);
      L::store_partial(out, L::fmadd(sums[r][half], scales, before), columns);
    });
  });
}

// The tile of a float32 strip [k][2 × width]: rows × 2 vectors of sums.
template <class L, int rows, class Call>
void float_tile(const Call &call, int64_t t, const strip_range &range, const float *strip) {
  using floats = typename L::floats;
  floats sums[rows][2];
  const float *x = call.x + t * call.x_stride + range.k0;
  const int64_t stride = call.x_stride;
  unroll<rows>([&](auto r) { sums[r][0] = sums[r][1] = L::zero(); });
  for (int64_t k = 0; k < range.count; k++, strip += 2 * L::width) {
    const floats b0 = L::load(strip), b1 = L::load(strip + L::width);
    unroll<rows>([&](auto r) {
      const floats a = L::set1(x[r * stride + k]);
      sums[r][0] = L::fmadd(a, b0, sums[r][0]);
      sums[r][1] = L::fmadd(a, b1, sums[r][1]);
    });
  }
  add_to_output<L, rows>(call, t, range.n0, range.k0 == 0, sums);
}

template <class L, int R, class Call>
void float_tile_of(int rows, const Call &call, int64_t t, const strip_range &range, const float *strip) {
  if (rows == R) return float_tile<L, R>(call, t, range, strip);
  if constexpr (R > 1) float_tile_of<L, R - 1>(rows, call, t, range, strip);
}

}  // namespace
