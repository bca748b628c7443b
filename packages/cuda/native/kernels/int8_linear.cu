// The LLM.int8() product (Dettmers et al. 2022, arXiv 2208.07339, section 3): int8 part, outlier part and bias, in float64 from
// the accumulators on, with one rounding; only the outlier sum is in float32.
#include "float_types.h"
#include "int8_product.h"

namespace {

struct DequantizeAndAdd {
  const ms_int8_linear_call &call;

  // Terms are x · CB · 2^-7; the power of two keeps products of huge x finite.
  template <int rows, int columns>
  __device__ __forceinline__ void add_outliers(float (&sum)[rows][columns], const int64_t (&t)[rows],
                                               const int64_t (&n)[columns], int first, int step) const {
    const ms_int8_product &product = call.product;
    const int32_t count = call.outlier_cols[0];
#pragma unroll 1
    for (int32_t i = first; i < count; i += step) {
      const int32_t k = call.outlier_cols[1 + i];
      if (k < 0 || k >= product.K) continue;  // a list that is none: the host cannot look at it without waiting
      float CB[columns];
#pragma unroll
      for (int c = 0; c < columns; c++) CB[c] = static_cast<float>(product.CB[packed_offset(product.K, n[c], k)]) * 0.0078125f;
#pragma unroll
      for (int r = 0; r < rows; r++) {
        const float x = call.x[t[r] * call.x_stride + k];
        const float outlier = call.per_row && fabsf(x) < call.threshold ? 0.0f : x;
#pragma unroll
        for (int c = 0; c < columns; c++) sum[r][c] = ms_fma(outlier, CB[c], sum[r][c]);
      }
    }
  }

  __device__ __forceinline__ void store(int64_t t, int64_t n, int accumulator, float outliers) const {
    const double SCA = call.SCA[t], SCB = call.SCB[n];
    double sum = static_cast<double>(accumulator) * SCA * (SCB * (1.0 / (127.0 * 127.0)));
    if (call.outlier_cols[0] > 0) sum += static_cast<double>(outliers) * (SCB * (128.0 / 127.0));
    if (call.bias != nullptr) sum += static_cast<double>(load_float(call.bias, call.bias_dtype, n));
    call.out[t * call.out_stride + n] = static_cast<float>(sum);
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(256) ms_int8_linear_few(ms_int8_linear_call call) {
  __shared__ Int8FewShared shared;
  int8_few(call.product, DequantizeAndAdd{call}, shared);
}

extern "C" __global__ void __launch_bounds__(256) ms_int8_linear_tiles(ms_int8_linear_call call) {
  __shared__ Int8TileShared shared;
  int8_tiles(call.product, DequantizeAndAdd{call}, shared);
}
