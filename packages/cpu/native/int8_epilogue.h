// What becomes of the int32 accumulators of a tile of rows × 32 columns: int8_linear's scales, outliers and bias with one rounding to
// float32 at the end (in float64 up to there; only the outlier sum is in float32), or int8_matmul's plain copy.
// The outlier columns of the weight are byte lanes of packed lines that the dot product has just brought into the cache.
// A `pair` is what a tile's 32 columns (two packed blocks, from n0 on, a multiple of 32) have in common for all rows.
#pragma once
#include <math.h>
#include <stdint.h>

#include "floats.h"
#include "kernels.h"
#include "packed_blocks.h"
#include "unroll.h"

namespace {

constexpr int pair_columns = 2 * block_rows;

template <class L>
struct store_accumulators {
  const int8_matmul_call &call;

  struct pair {
    const int8_matmul_call &call;
    const int64_t n0;

    pair(const store_accumulators &matmul, int64_t n0) : call(matmul.call), n0(n0) {}

    // tile [rows][32] → rows row0 … of the output.
    void finish(const int32_t *tile, int64_t row0, int rows) const {
      const int64_t columns = smaller(pair_columns, call.N - n0);
      for (int r = 0; r < rows; r++, tile += pair_columns) {
        int32_t *out = call.out + (row0 + r) * call.out_stride + n0;
        int64_t n = 0;
        for (; n + L::width <= columns; n += L::width) L::store_ints(out + n, L::load_ints(tile + n));
        if (n < columns) L::store_ints_partial(out + n, L::load_ints(tile + n), columns - n);
      }
    }
  };
};

template <class L>
struct dequantize_and_add {
  const int8_linear_call &call;
  const int8_t *packed;  // CB

  class pair {
   public:
    pair(const dequantize_and_add &linear, int64_t n0)
        : call_(linear.call), n0_(n0), columns_(smaller(pair_columns, linear.call.N - n0)) {
      const int8_t *block = linear.packed + n0 / block_rows * block_bytes(call_.K);
      block_[0] = block;
      block_[1] = columns_ > block_rows ? block + block_bytes(call_.K) : block;  // absent: the first again, for nothing
      for (int v = 0; v * L::width < columns_; v++) load_terms(v);
    }

    // tile [rows][32] → rows row0 … of the output.
    void finish(const int32_t *tile, int64_t row0, int rows) const {
      const bool outliers = call_.outlier_cols[0] > 0;
      floats sums[chunk_rows][2];
      for (int v = 0; v * L::width < columns_; v += 2) {
        for (int r = 0; r < rows; r += chunk_rows) {
          const int chunk = rows - r < chunk_rows ? rows - r : chunk_rows;
          if (outliers && call_.per_row) outlier_sums<true>(row0 + r, chunk, v, sums);
          else if (outliers) outlier_sums<false>(row0 + r, chunk, v, sums);
          finish_chunk(tile + r * pair_columns, row0 + r, chunk, v, outliers ? sums : nullptr);
        }
      }
    }

   private:
    using floats = typename L::floats;
    using doubles = typename L::doubles;
    // 6 rows × 2 vectors: 12 sums in registers, enough to hide the latency of their fused multiply-adds.
    static constexpr int chunk_rows = 6;
    static constexpr int vectors = pair_columns / L::width;

    struct column_terms {
      doubles scale[2];  // SCB / 127
      doubles bias[2];
    };

    void load_terms(int v) {
      const int64_t n = n0_ + v * L::width, columns = smaller(L::width, call_.N - n);
      const floats scales = L::load_partial(call_.SCB + n, columns), bias = load_bias(n, columns);
      const doubles share = L::set1_double(1.0 / 127.0);
      terms_[v] = {{L::mul(L::low(scales), share), L::mul(L::high(scales), share)}, {L::low(bias), L::high(bias)}};
    }

    floats load_bias(int64_t n, int64_t columns) const {
      if (call_.bias == nullptr) return L::zero();
      if (call_.bias_dtype == MS_FLOAT16) return L::template load_as_partial<MS_FLOAT16>(call_.bias, n, columns);
      if (call_.bias_dtype == MS_BFLOAT16) return L::template load_as_partial<MS_BFLOAT16>(call_.bias, n, columns);
      return L::template load_as_partial<MS_FLOAT32>(call_.bias, n, columns);
    }

    // sums[r][i] = Σ over outliers of x · CB · 2^-7 for the columns of vector v + i. Rows past `rows` repeat the last one.
    template <bool per_row>
    void outlier_sums(int64_t row0, int rows, int v, floats (&sums)[chunk_rows][2]) const {
      const int8_t *line[2];
      for (int i = 0; i < 2; i++) line[i] = block_[(v + i) * L::width / block_rows] + (v + i) * L::width % block_rows * 4;
      const float *x[chunk_rows];
      unroll<chunk_rows>([&](auto r) { x[r] = call_.x + (row0 + (r < rows ? r : rows - 1)) * call_.x_stride; });
      floats sum[chunk_rows][2];
      unroll<chunk_rows>([&](auto r) { sum[r][0] = sum[r][1] = L::zero(); });
      const int32_t count = call_.outlier_cols[0];
      for (int32_t i = 1; i <= count; i++) {
        const int64_t k = call_.outlier_cols[i], offset = (k >> 2) * 64;
        const floats low = L::byte_lane(line[0] + offset, k & 3), high = L::byte_lane(line[1] + offset, k & 3);
        unroll<chunk_rows>([&](auto r) {
          const bool inlier = per_row && fabsf(x[r][k]) < call_.threshold;
          const floats value = L::set1(inlier ? 0.0f : x[r][k]);
          sum[r][0] = L::fmadd(value, low, sum[r][0]);
          sum[r][1] = L::fmadd(value, high, sum[r][1]);
        });
      }
      unroll<chunk_rows>([&](auto r) {
        sums[r][0] = sum[r][0];
        sums[r][1] = sum[r][1];
      });
    }

    // SCB / 127 · (accumulator · SCA / 127 + outliers) + bias
    void finish_chunk(const int32_t *tile, int64_t row0, int rows, int v, const floats (*sums)[2]) const {
      const doubles outlier_share = L::set1_double(128.0);  // undoes the 2^-7
      for (int i = 0; i < 2 && (v + i) * L::width < columns_; i++) {
        const int64_t column = (v + i) * L::width;
        const column_terms &terms = terms_[v + i];
        for (int r = 0; r < rows; r++) {
          const auto accumulators = L::load_ints(tile + r * pair_columns + column);
          const doubles scale = L::set1_double(call_.SCA[row0 + r] * (1.0 / 127.0));
          doubles low = L::mul(L::low(accumulators), scale), high = L::mul(L::high(accumulators), scale);
          if (sums != nullptr) {
            low = L::fmadd(L::low(sums[r][i]), outlier_share, low);
            high = L::fmadd(L::high(sums[r][i]), outlier_share, high);
          }
          low = L::fmadd(low, terms.scale[0], terms.bias[0]);
          high = L::fmadd(high, terms.scale[1], terms.bias[1]);
          float *out = call_.out + (row0 + r) * call_.out_stride + n0_ + column;
          if (column + L::width <= columns_) L::store(out, L::narrow(low, high));
          else L::store_partial(out, L::narrow(low, high), columns_ - column);
        }
      }
    }

    const int8_linear_call &call_;
    const int64_t n0_, columns_;
    const int8_t *block_[2];
    column_terms terms_[vectors];
  };
};

}  // namespace
