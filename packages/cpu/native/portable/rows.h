// What the plain kernels share: rows of a packed or strided int8 matrix, and work cut by rows.
#pragma once
#include <string.h>

#include "kernels.h"
#include "pool.h"

// Where (n, k) lies in a packed matrix [N, K], in bytes.
inline int64_t packed_offset(int64_t K, int64_t n, int64_t k) {
  return n / 16 * packed_int8_bytes(16, K) + k / 4 * 64 + n % 16 * 4 + k % 4;
}

// Columns first … first + count - 1 of row n.
inline void read_row(const int8_t *CB, bool packed, int64_t stride, int64_t K, int64_t n, int64_t first, int64_t count,
                     int8_t *to) {
  if (!packed) {
    memcpy(to, CB + n * stride + first, size_t(count));
    return;
  }
  for (int64_t k = 0; k < count; k++) to[k] = CB[packed_offset(K, n, first + k)];
}

// body(n) for n = 0 … count - 1 in tasks of `step`.
template <typename Body>
void each_row(int64_t count, int64_t step, const Body &body) {
  struct work {
    const Body &body;
    int64_t count, step;
  } all = {body, count, step};
  parallel_for((count + step - 1) / step,
               [](void *context, int64_t task) {
                 const work &w = *static_cast<work *>(context);
                 for (int64_t n = task * w.step; n < w.count && n < (task + 1) * w.step; n++) w.body(n);
               },
               &all);
}

void portable_linear(const linear_call *call);
void portable_int8_quantize(const int8_quantize_call *call);
void portable_int8_linear(const int8_linear_call *call);
void portable_int8_matmul(const int8_matmul_call *call);
void portable_quantize_weight(const quantize_weight_call *call);
void portable_pack_int8(const pack_int8_call *call);
void portable_unpack_int8(const pack_int8_call *call);
void portable_dequantize_weight(const dequantize_weight_call *call);
void portable_int8_weight_linear(const int8_weight_linear_call *call);
