// What the ops over matrices share: the leading dimension of an operand, and whether a product has anything to compute.
#pragma once
#include "ops/op.h"

inline int64_t row_stride(const operand &matrix) { return matrix.stride[0]; }

// Bytes of scratch of an int8 product: activations as panels, and the weight packed on the fly where it comes strided (ops.ts).
inline size_t int8_product_scratch(int64_t rows, int64_t K, int64_t N, bool packed) {
  const int64_t panels = round_up(rows, 48) * round_up(K, 64) + 4096;
  return size_t(panels + (packed ? 0 : round_up(packed_int8_bytes(N, K), 64)));
}
