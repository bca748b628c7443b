// What becomes of the int32 accumulators of a tile of rows × 32 columns: int8_linear's scales, outliers and bias with one
// rounding to float32 at the end (in float64 up to there; only the outlier sum is in float32), or int8_matmul's plain copy.
// The outlier columns of the weight are byte lanes of packed lines that the dot product has just brought into the cache. A
// `pair` is what a tile's 32 columns (two packed blocks, from n0 on, a multiple of 32) have in common for all rows.
#pragma once
#include <math.h>
#include <stdint.h>

#include "floats.h"
#include "kernels.h"
#include "packed_blocks.h"
#include "pool.h"
#include "unroll.h"

namespace {

constexpr int pair_columns = 2 * block_rows;

template <class L>
struct store_accumulators {
  const int8_matmul_call &call;

  void prepare_rows(int64_t, int64_t) const {}

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

// The workspace of a call's first thread, shared with its tasks: sums of AMX tiles, then gathered outliers.
constexpr int64_t tile_sums_bytes = 32 * 1024;

template <class L>
struct dequantize_and_add {
  const int8_linear_call &call;
  const int8_t *packed;  // CB
  float *outliers;       // [rows, count] of x, 0 for inliers; NULL where they do not fit: then x is read where it lies

  dequantize_and_add(const int8_linear_call &call, const int8_t *packed) : call(call), packed(packed), outliers(nullptr) {
    if (call.rows * call.outlier_cols[0] * 4 > THREAD_WORKSPACE_BYTES - tile_sums_bytes) return;
    outliers = reinterpret_cast<float *>(static_cast<char *>(thread_workspace()) + tile_sums_bytes);
  }

  float outlier(int64_t row, int64_t k) const {
    const float x = call.x[row * call.x_stride + k];
    return call.per_row && fabsf(x) < call.threshold ? 0.0f : x;
  }

  // To be called for all rows before tiles are finished.
  void prepare_rows(int64_t first, int64_t end) const {
    const int32_t count = call.outlier_cols[0];
    for (int64_t row = first; outliers != nullptr && row < end; row++) {
      for (int32_t i = 0; i < count; i++) outliers[row * count + i] = outlier(row, call.outlier_cols[1 + i]);
    }
  }

  class pair {
   public:
    pair(const dequantize_and_add &linear, int64_t n0)
        : linear_(linear), call_(linear.call), n0_(n0), columns_(smaller(pair_columns, linear.call.N - n0)) {
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
          if (outliers && linear_.outliers != nullptr) outlier_sums<true>(row0 + r, chunk, v, sums);
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
      doubles product[2];  // SCB / 127²
      doubles outlier[2];  // SCB / 127 · 2^7, for sums of x · CB · 2^-7
      doubles bias[2];
    };

    void load_terms(int v) {
      const int64_t n = n0_ + v * L::width, columns = smaller(L::width, call_.N - n);
      const floats scales = L::load_partial(call_.SCB + n, columns), bias = load_bias(n, columns);
      const doubles square = L::set1_double(1.0 / (127.0 * 127.0)), single = L::set1_double(128.0 / 127.0);
      terms_[v] = {{L::mul(L::low(scales), square), L::mul(L::high(scales), square)},
                   {L::mul(L::low(scales), single), L::mul(L::high(scales), single)},
                   {L::low(bias), L::high(bias)}};
    }

    floats load_bias(int64_t n, int64_t columns) const {
      if (call_.bias == nullptr) return L::zero();
      if (call_.bias_dtype == MS_FLOAT16) return L::template load_as_partial<MS_FLOAT16>(call_.bias, n, columns);
      if (call_.bias_dtype == MS_BFLOAT16) return L::template load_as_partial<MS_BFLOAT16>(call_.bias, n, columns);
      return L::template load_as_partial<MS_FLOAT32>(call_.bias, n, columns);
    }

    // sums[r][i] = Σ over outliers of x · CB · 2^-7 for the columns of vector v + i. Rows past `rows` repeat the last one.
    template <bool gathered>
    void outlier_sums(int64_t row0, int rows, int v, floats (&sums)[chunk_rows][2]) const {
      const int32_t count = call_.outlier_cols[0];
      const int8_t *line[2];
      for (int i = 0; i < 2; i++) line[i] = block_[(v + i) * L::width / block_rows] + (v + i) * L::width % block_rows * 4;
      int64_t row[chunk_rows];
      unroll<chunk_rows>([&](auto r) { row[r] = (row0 + (r < rows ? r : rows - 1)) * (gathered ? count : 1); });
      floats sum[chunk_rows][2];
      unroll<chunk_rows>([&](auto r) { sum[r][0] = sum[r][1] = L::zero(); });
      for (int32_t i = 0; i < count; i++) {
        const int64_t k = call_.outlier_cols[1 + i], offset = (k >> 2) * 64;
        const floats low = L::byte_lane(line[0] + offset, k & 3), high = L::byte_lane(line[1] + offset, k & 3);
        unroll<chunk_rows>([&](auto r) {
          const floats x = L::set1(gathered ? linear_.outliers[row[r] + i] : linear_.outlier(row[r], k));
          sum[r][0] = L::fmadd(x, low, sum[r][0]);
          sum[r][1] = L::fmadd(x, high, sum[r][1]);
        });
      }
      unroll<chunk_rows>([&](auto r) {
        sums[r][0] = sum[r][0];
        sums[r][1] = sum[r][1];
      });
    }

    // accumulator · SCA · SCB / 127² + bias + outliers · SCB / 127
    void finish_chunk(const int32_t *tile, int64_t row0, int rows, int v, const floats (*sums)[2]) const {
      for (int i = 0; i < 2 && (v + i) * L::width < columns_; i++) {
        const int64_t column = (v + i) * L::width, stride = call_.out_stride, columns = columns_ - column;
        const column_terms terms = terms_[v + i];
        const float *SCA = call_.SCA + row0;
        const int32_t *accumulators = tile + column;
        float *out = call_.out + row0 * stride + n0_ + column;
        for (int r = 0; r < rows; r++, out += stride, accumulators += pair_columns) {
          const auto products = L::load_ints(accumulators);
          const doubles scale = L::set1_double(SCA[r]);
          doubles low = L::fmadd(L::mul(L::low(products), scale), terms.product[0], terms.bias[0]);
          doubles high = L::fmadd(L::mul(L::high(products), scale), terms.product[1], terms.bias[1]);
          if (sums != nullptr) {
            low = L::fmadd(L::low(sums[r][i]), terms.outlier[0], low);
            high = L::fmadd(L::high(sums[r][i]), terms.outlier[1], high);
          }
          const floats result = L::narrow(low, high);
          if (columns >= L::width) L::store(out, result);
          else L::store_partial(out, result, columns);
        }
      }
    }

    const dequantize_and_add &linear_;
    const int8_linear_call &call_;
    const int64_t n0_, columns_;
    const int8_t *block_[2];
    column_terms terms_[vectors];
  };
};

}  // namespace
