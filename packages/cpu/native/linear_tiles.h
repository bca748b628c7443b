// linear (float32 activations, float32/float16/bfloat16 weights) over the lanes of one instruction set, two ways:
//   few rows   dot products of rows of x with rows of the weight, both as they lie; a weight comes from memory once and is
//              widened in registers. Bound by reading the weights: one row of x reads them as one stream, which memory likes
//              best (several rows of the weight at once cost a tenth).
//   many rows  strips of the weight packed as float32 [k][column] (strip_product.h). Bound by fused multiply-adds.
// Each output is summed in an order that depends on K and on whether rows are one, few or many, on nothing else.
#pragma once
#include <stdint.h>

#include "kernels.h"
#include "strip_product.h"
#include "tasks.h"
#include "unroll.h"

namespace {

// ---- few rows ----

template <class L, int dtype>
struct row_dots {
  using floats = typename L::floats;
  // A tile: its sums fill the registers, and its weights are widened once for all of its rows of x.
  static constexpr int x_rows = L::width == 16 ? 8 : 2, weight_rows = L::width == 16 ? 3 : 4;
  static constexpr int64_t depth = 1024;    // columns of x_rows rows of x: at most 32 KiB
  // Of the weight: 96 or 192 KiB of that depth. With few rows of x a tile, passes are many: then they follow each other while a
  // tile's weights are in the first-level cache.
  static constexpr int64_t span_rows = L::width == 16 ? 48 : weight_rows;
  static constexpr int64_t element = dtype == MS_FLOAT32 ? 4 : 2;

  // out[0][n] for the only row of x: eight sums, to cover the latency of the multiply-add.
  static void one_row(const linear_call &call, int64_t n) {
    constexpr int chains = 8;
    floats sums[chains];
    unroll<chains>([&](auto i) { sums[i] = L::zero(); });
    const int64_t row = n * call.weight_stride;
    int64_t k = 0;
    for (; k + chains * L::width <= call.K; k += chains * L::width) {
      const char *ahead = static_cast<const char *>(call.weight) + (row + k) * element + 1024;
      unroll<chains * L::width * element / 64>([&](auto i) { __builtin_prefetch(ahead + i * 64); });
      unroll<chains>([&](auto i) {
        const int64_t at = k + i * L::width;
        sums[i] = L::fmadd(L::load(call.x + at), L::template load_as<dtype>(call.weight, row + at), sums[i]);
      });
    }
    for (; k + L::width <= call.K; k += L::width) {
      sums[0] = L::fmadd(L::load(call.x + k), L::template load_as<dtype>(call.weight, row + k), sums[0]);
    }
    if (k < call.K) {
      const floats weights = L::template load_as_partial<dtype>(call.weight, row + k, call.K - k);
      sums[1] = L::fmadd(L::load_partial(call.x + k, call.K - k), weights, sums[1]);
    }
    unroll<4>([&](auto i) { sums[i] = L::add(sums[i], sums[i + 4]); });
    call.out[n] = L::sum(L::add(L::add(sums[0], sums[2]), L::add(sums[1], sums[3])));
  }

  // What a tile reads: columns k0 … k_end - 1 of its rows; meanwhile it prefetches as many columns of other rows.
  struct column_range {
    int64_t k0, k_end;
    const char *next;  // NULL: nothing
  };

  // R rows of x from t, C rows of the weight from n. Unfinished sums are kept in `partial` until the range reaches K.
  template <int R, int C>
  static void tile(const linear_call &call, int64_t t, int64_t n, const column_range &range, float *partial) {
    floats sums[R][C];
    const auto each = [](const auto &body) { unroll<R>([&](auto r) { unroll<C>([&](auto c) { body(r, c); }); }); };
    each([&](auto r, auto c) { sums[r][c] = range.k0 == 0 ? L::zero() : L::load(partial + (r * C + c) * L::width); });
    const auto step = [&](const auto &load_x, const auto &load_weight) {
      floats w[C];
      unroll<C>([&](auto c) { w[c] = load_weight((n + c) * call.weight_stride); });
      unroll<R>([&](auto r) {
        const floats x = load_x(call.x + (t + r) * call.x_stride);
        unroll<C>([&](auto c) { sums[r][c] = L::fmadd(x, w[c], sums[r][c]); });
      });
    };
    int64_t k = range.k0;
    for (; k + L::width <= range.k_end; k += L::width) {
      if (range.next != nullptr) {
        const char *ahead = range.next + (k - range.k0) * element;
        unroll<C>([&](auto c) { __builtin_prefetch(ahead + c * call.weight_stride * element); });
      }
      step([&](const float *x) { return L::load(x + k); },
           [&](int64_t row) { return L::template load_as<dtype>(call.weight, row + k); });
    }
    if (range.k_end < call.K) {
      each([&](auto r, auto c) { L::store(partial + (r * C + c) * L::width, sums[r][c]); });
      return;
    }
    if (k < call.K) {
      step([&](const float *x) { return L::load_partial(x + k, call.K - k); },
           [&](int64_t row) { return L::template load_as_partial<dtype>(call.weight, row + k, call.K - k); });
    }
    constexpr int vectors = (R * C + L::width - 1) / L::width;
    alignas(64) float out[vectors * L::width];
    unroll<vectors>([&](auto i) {
      floats some[L::width];
      unroll<L::width>([&](auto j) {
        constexpr int at = i * L::width + j;
        if constexpr (at < R * C) some[j] = sums[at / C][at % C];
        else some[j] = L::zero();
      });
      L::store(out + i * L::width, L::sum_each(some));
    });
    each([&](auto r, auto c) { call.out[(t + r) * call.out_stride + n + c] = out[r * C + c]; });
  }

  template <int R, int C>
  static void tile_of(int64_t rows, const linear_call &call, int64_t t, int64_t n, const column_range &range, float *partial) {
    if (rows == R) return tile<R, C>(call, t, n, range, partial);
    if constexpr (R > 1) tile_of<R - 1, C>(rows, call, t, n, range, partial);
  }

  // All rows of x × rows n0 … n_end - 1 of the weight (at most span_rows), by ranges of columns of which the rows of x fit the
  // first-level cache. The weights come from memory in the first pass over x and from the second-level cache in the others.
  static void span(const linear_call &call, int64_t n0, int64_t n_end) {
    const int64_t height = ceil_div(call.rows, ceil_div(call.rows, x_rows));
    const auto place = [&](int64_t n, int64_t k) {
      return static_cast<const char *>(call.weight) + (n * call.weight_stride + k) * element;
    };
    for (int64_t k0 = 0; k0 < call.K; k0 += depth) {
      const int64_t k_end = smaller(call.K, k0 + depth);
      float *partial = static_cast<float *>(thread_workspace());
      for (int64_t t = 0; t < call.rows; t += height) {
        const int64_t rows = smaller(height, call.rows - t);
        int64_t n = n0;
        for (; n + weight_rows <= n_end; n += weight_rows, partial += rows * weight_rows * L::width) {
          const bool last = n + 2 * weight_rows > n_end;
          const char *next = last ? place(k_end < call.K ? n0 : n_end, k_end < call.K ? k_end : 0) : place(n + weight_rows, k0);
          tile_of<x_rows, weight_rows>(rows, call, t, n, {k0, k_end, t == 0 ? next : nullptr}, partial);
        }
        for (; n < n_end; n++, partial += rows * L::width) {
          tile_of<x_rows, 1>(rows, call, t, n, {k0, k_end, nullptr}, partial);
        }
      }
    }
  }

  static void add_bias(const linear_call &call, int64_t first, int64_t end) {
    if (call.bias == nullptr) return;
    for (int64_t n = first; n < end; n += L::width) {
      const int64_t columns = smaller(L::width, end - n);
      const floats bias = load_bias<L>(call, n, columns);
      for (int64_t t = 0; t < call.rows; t++) {
        float *out = call.out + t * call.out_stride + n;
        L::store_partial(out, L::add(L::load_partial(out, columns), bias), columns);
      }
    }
  }

  static void run(const linear_call &call) {
    const double reading = static_cast<double>(call.K * element * weight_rows) / 10;
    const double computing = static_cast<double>(call.rows * call.K * weight_rows) / L::width;
    for_each_range(ceil_div(call.N, weight_rows), reading > computing ? reading : computing, [&](int64_t first, int64_t end) {
      int64_t n = first * weight_rows;
      const int64_t n_end = smaller(call.N, end * weight_rows);
      for (; call.rows == 1 && n < n_end; n++) one_row(call, n);
      for (; n < n_end; n += span_rows) span(call, n, smaller(n_end, n + span_rows));
      add_bias(call, first * weight_rows, n_end);
    });
  }
};

// ---- many rows ----

template <class L, int dtype>
struct float_strips {
  using floats = typename L::floats;
  using element = float;
  using registers = plain_registers;
  static constexpr int panel_rows = L::width == 16 ? 12 : 6;
  static constexpr int strip_columns = 2 * L::width;
  static constexpr int64_t depth = 256;  // 32 KiB a strip
  static constexpr int64_t rows_at_once = 480;
  static constexpr double products_per_cycle = 2 * L::width;

  const linear_call &call;

  // `count` weights of row n from k on, zero where they are absent.
  floats weights(int64_t n, int64_t k, int64_t count) const {
    if (n >= call.N || count <= 0) return L::zero();
    const int64_t index = n * call.weight_stride + k;
    if (count >= L::width) return L::template load_as<dtype>(call.weight, index);
    return L::template load_as_partial<dtype>(call.weight, index, count);
  }

  // strip[k - k0][column] = weight[n0 + column][k].
  void pack(const strip_range &range, float *strip) const {
    const auto [n0, k0, count] = range;
    for (int half = 0; half < 2; half++) {
      for (int64_t k = 0; k < count; k += L::width) {
        floats rows[L::width];
        unroll<L::width>([&](auto r) { rows[r] = weights(n0 + half * L::width + r, k0 + k, count - k); });
        L::transpose(rows);
        const int64_t present = smaller(L::width, count - k);
        for (int r = 0; r < present; r++) L::store(strip + (k + r) * strip_columns + half * L::width, rows[r]);
      }
    }
  }

  void tile(registers &, int rows, int64_t t, const strip_range &range, const strip_range &, const float *strip) const {
    float_tile_of<L, panel_rows>(rows, call, t, range, strip);
  }
};

// From this many rows on packing a strip costs less than it saves.
constexpr int64_t strip_rows_min = 24;

template <class L, int dtype>
void linear_of(const linear_call &call) {
  if (call.rows < strip_rows_min) row_dots<L, dtype>::run(call);
  else multiply_strips(float_strips<L, dtype>{call}, call.rows, call.K, call.N);
}

template <class L>
void linear_by_lanes(const linear_call *call) {
  if (call->weight_dtype == MS_FLOAT16) linear_of<L, MS_FLOAT16>(*call);
  else if (call->weight_dtype == MS_BFLOAT16) linear_of<L, MS_BFLOAT16>(*call);
  else linear_of<L, MS_FLOAT32>(*call);
}

}  // namespace
