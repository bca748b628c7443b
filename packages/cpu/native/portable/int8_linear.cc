// The int8 products in plain loops: int8_matmul exact in int32, int8_linear with its epilogue in float64 and one rounding at
// the end.
#include "floats.h"
#include "portable/rows.h"

namespace {

int32_t dot(const int8_t *a, const int8_t *b, int64_t K) {
  int32_t sum = 0;
  for (int64_t k = 0; k < K; k++) sum += int32_t(a[k]) * int32_t(b[k]);
  return sum;
}

// Σ over outliers x[t, k] · CB[n, k]; each product is exact in float64.
double outlier_sum(const int8_linear_call &call, const float *x, const int8_t *CB) {
  double sum = 0;
  for (int32_t i = 1; i <= call.outlier_cols[0]; i++) {
    const int32_t k = call.outlier_cols[i];
    if (call.per_row && fabsf(x[k]) < call.threshold) continue;
    sum += double(x[k]) * double(CB[k]);
  }
  return sum;
}

void column(const int8_linear_call &call, int64_t n) {
  int8_t *CB = static_cast<int8_t *>(thread_workspace());  // K is at most 133,144
  read_row(call.CB, call.packed != 0, call.CB_stride, call.K, n, 0, call.K, CB);
  const double SCB = call.SCB[n], bias = call.bias == nullptr ? 0.0 : double(load_float(call.bias, call.bias_dtype, n));
  for (int64_t t = 0; t < call.rows; t++) {
    const double product = double(dot(call.CA + t * call.CA_stride, CB, call.K)) * double(call.SCA[t]) * SCB / (127.0 * 127.0);
    const double outliers = outlier_sum(call, call.x + t * call.x_stride, CB) * SCB / 127.0;
    call.out[t * call.out_stride + n] = float(product + outliers + bias);
  }
}

}  // namespace

void portable_int8_linear(const int8_linear_call *call) {
  each_row(call->N, 16, [&](int64_t n) { column(*call, n); });
}

void portable_int8_matmul(const int8_matmul_call *call) {
  each_row(call->N, 16, [&](int64_t n) {
    int8_t *CB = static_cast<int8_t *>(thread_workspace());
    read_row(call->CB, call->packed != 0, call->CB_stride, call->K, n, 0, call->K, CB);
    for (int64_t t = 0; t < call->rows; t++)
      call->out[t * call->out_stride + n] = dot(call->CA + t * call->CA_stride, CB, call->K);
  });
}
