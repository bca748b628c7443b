// x · weightᵀ + bias in float64, rounded once: the oracle of the float linears. Simple rather than fast.
#include "floats.h"
#include "portable/rows.h"

namespace {

constexpr int64_t columns_at_once = 8192;  // of a weight row, converted to float32
constexpr int64_t rows_at_once = 64;

// Four chains in a fixed order; each product of two float32 is exact.
double dot(const float *a, const float *b, int64_t n) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int j = 0; j < 4; j++) sums[j] += double(a[i + j]) * double(b[i + j]);
  }
  for (; i < n; i++) sums[0] += double(a[i]) * double(b[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Column n of out for the rows first … end - 1.
void column(const linear_call &call, int64_t n, int64_t first, int64_t end) {
  float *weight = static_cast<float *>(thread_workspace());
  double sums[rows_at_once] = {};
  for (int64_t k = 0; k < call.K; k += columns_at_once) {
    const int64_t count = call.K - k < columns_at_once ? call.K - k : columns_at_once;
    for (int64_t i = 0; i < count; i++) weight[i] = load_float(call.weight, call.weight_dtype, n * call.weight_stride + k + i);
    for (int64_t t = first; t < end; t++) sums[t - first] += dot(call.x + t * call.x_stride + k, weight, count);
  }
  const double bias = call.bias == nullptr ? 0.0 : double(load_float(call.bias, call.bias_dtype, n));
  for (int64_t t = first; t < end; t++) call.out[t * call.out_stride + n] = float(sums[t - first] + bias);
}

}  // namespace

void portable_linear(const linear_call *call) {
  each_row(call->N, 16, [&](int64_t n) {
    for (int64_t t = 0; t < call->rows; t += rows_at_once) {
      column(*call, n, t, t + rows_at_once < call->rows ? t + rows_at_once : call->rows);
    }
  });
}
