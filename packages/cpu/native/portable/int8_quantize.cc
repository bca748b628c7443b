// LLM.int8() row quantization in plain loops: outlier columns first, over all rows, then each row.
#include "floats.h"
#include "portable/rows.h"

namespace {

constexpr int64_t rows_per_task = 8;

bool is_outlier(float x, float threshold) { return threshold > 0 && !(fabsf(x) < threshold); }

// scratch[k] = 1 where column k holds an outlier. Rows write the same 1 from several threads.
void mark_columns(const int8_quantize_call &call, int64_t t) {
  const float *x = call.x + t * call.x_stride;
  for (int64_t k = 0; k < call.K; k++) {
    if (is_outlier(x[k], call.threshold)) __atomic_store_n(&call.scratch[k], uint8_t(1), __ATOMIC_RELAXED);
  }
}

// Largest magnitude of the row's elements that are no outliers; NaN if one of them is.
float absmax(const int8_quantize_call &call, const float *x) {
  float largest = 0;
  for (int64_t k = 0; k < call.K; k++) {
    if (is_outlier(x[k], call.threshold)) continue;
    if (x[k] != x[k]) return x[k];
    largest = fabsf(x[k]) > largest ? fabsf(x[k]) : largest;
  }
  return largest;
}

void quantize_row(const int8_quantize_call &call, int64_t t) {
  const float *x = call.x + t * call.x_stride;
  int8_t *CA = call.CA + t * call.CA_stride;
  const float largest = absmax(call, x), scale = 127.0f / largest;
  for (int64_t k = 0; k < call.K; k++) {
    const bool outlier = call.per_row ? is_outlier(x[k], call.threshold) : call.threshold > 0 && call.scratch[k] != 0;
    const float quotient = x[k] * scale;
    CA[k] = outlier || largest == 0 ? int8_t(0) : isinf(scale) ? int8_of_tiny(x[k], largest) : int8_of(quotient);
  }
  call.SCA[t] = largest;
}

}  // namespace

void portable_int8_quantize(const int8_quantize_call *call) {
  int32_t count = 0;
  if (call->threshold > 0) {
    memset(call->scratch, 0, size_t(call->K));
    each_row(call->rows, rows_per_task, [&](int64_t t) { mark_columns(*call, t); });
    for (int64_t k = 0; k < call->K; k++) {
      if (call->scratch[k] != 0) call->outlier_cols[++count] = int32_t(k);
    }
  }
  call->outlier_cols[0] = count;
  each_row(call->rows, rows_per_task, [&](int64_t t) { quantize_row(*call, t); });
}
