// x · (CB · SCB / 127)ᵀ + bias in float64, rounded once: the oracle of the fast ones.
#include "floats.h"
#include "portable/rows.h"

namespace {

constexpr int64_t columns_at_once = 65536;  // of a weight row, in the workspace
constexpr int64_t rows_at_once = 64;

// Column n of out for the rows first … end - 1. Every product is exact.
void column(const int8_weight_linear_call &call, int64_t n, int64_t first, int64_t end) {
  int8_t *CB = static_cast<int8_t *>(thread_workspace());
  double sums[rows_at_once] = {};
  for (int64_t k = 0; k < call.K; k += columns_at_once) {
    const int64_t count = call.K - k < columns_at_once ? call.K - k : columns_at_once;
    read_row(call.CB, call.packed != 0, call.CB_stride, call.K, n, k, count, CB);
    for (int64_t t = first; t < end; t++) {
      const float *x = call.x + t * call.x_stride + k;
      for (int64_t i = 0; i < count; i++) sums[t - first] += double(x[i]) * CB[i];
    }
  }
  const double bias = call.bias == nullptr ? 0.0 : double(load_float(call.bias, call.bias_dtype, n));
  for (int64_t t = first; t < end; t++) {
    call.out[t * call.out_stride + n] = float(sums[t - first] * call.SCB[n] / 127.0 + bias);
  }
}

}  // namespace

void portable_int8_weight_linear(const int8_weight_linear_call *call) {
  each_row(call->N, 16, [&](int64_t n) {
    for (int64_t t = 0; t < call->rows; t += rows_at_once) {
      column(*call, n, t, t + rows_at_once < call->rows ? t + rows_at_once : call->rows);
    }
  });
}
