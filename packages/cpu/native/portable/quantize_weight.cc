// Row-wise absmax quantization of weights and its inverse, in plain loops.
#include "floats.h"
#include "portable/rows.h"

namespace {

constexpr int64_t columns_at_once = 16384;

float weight_at(const quantize_weight_call &call, int64_t n, int64_t k) {
  const float w = load_float(call.weight, call.weight_dtype, n * call.weight_stride + k);
  return call.float16_first ? float16_to_float(float_to_float16(w)) : w;
}

float absmax(const quantize_weight_call &call, int64_t n) {
  float largest = 0;
  for (int64_t k = 0; k < call.K; k++) {
    const float w = weight_at(call, n, k);
    if (w != w) return w;
    largest = fabsf(w) > largest ? fabsf(w) : largest;
  }
  return largest;
}

void quantize_row(const quantize_weight_call &call, int64_t n) {
  const float largest = absmax(call, n);
  const float scale = call.float16_first ? 1.0f / largest * 127.0f : 127.0f / largest;
  for (int64_t k = 0; k < call.K; k++) {
    const float w = weight_at(call, n, k), quotient = w * scale;
    const int8_t q = largest == 0 ? int8_t(0) : isinf(scale) ? int8_of_tiny(w, largest) : int8_of(quotient);
    call.CB[call.packed ? packed_offset(call.K, n, k) : n * call.CB_stride + k] = q;
  }
  call.SCB[n] = largest;
}

// Zeros in the absent rows and columns of block `block`, and its row sums.
void finish_block(int8_t *packed, int64_t N, int64_t K, int64_t block) {
  const int64_t padded_K = (K + 63) / 64 * 64;
  int32_t sums[16] = {};
  for (int64_t row = 0; row < 16; row++) {
    const int64_t n = block * 16 + row;
    for (int64_t k = n < N ? K : 0; k < padded_K; k++) packed[packed_offset(K, n, k)] = 0;
    for (int64_t k = 0; k < K; k++) sums[row] += packed[packed_offset(K, n, k)];
  }
  memcpy(packed + (block + 1) * packed_int8_bytes(16, K) - 64, sums, sizeof sums);
}

}  // namespace

void portable_quantize_weight(const quantize_weight_call *call) {
  each_row(call->N, 16, [&](int64_t n) { quantize_row(*call, n); });
  if (!call->packed) return;
  each_row((call->N + 15) / 16, 1, [&](int64_t block) { finish_block(call->CB, call->N, call->K, block); });
}

void portable_pack_int8(const pack_int8_call *call) {
  each_row((call->N + 15) / 16, 1, [&](int64_t block) {
    for (int64_t n = block * 16; n < call->N && n < block * 16 + 16; n++) {
      for (int64_t k = 0; k < call->K; k++)
        call->destination[packed_offset(call->K, n, k)] = call->source[n * call->stride + k];
    }
    finish_block(call->destination, call->N, call->K, block);
  });
}

void portable_unpack_int8(const pack_int8_call *call) {
  each_row(call->N, 16,
           [&](int64_t n) { read_row(call->source, true, 0, call->K, n, 0, call->K, call->destination + n * call->stride); });
}

void portable_dequantize_weight(const dequantize_weight_call *call) {
  each_row(call->N, 16, [&](int64_t n) {
    int8_t *CB = static_cast<int8_t *>(thread_workspace());
    const double SCB = call->SCB[n];
    for (int64_t k = 0; k < call->K; k += columns_at_once) {
      const int64_t count = call->K - k < columns_at_once ? call->K - k : columns_at_once;
      read_row(call->CB, call->packed != 0, call->CB_stride, call->K, n, k, count, CB);
      for (int64_t i = 0; i < count; i++) call->weight[n * call->weight_stride + k + i] = float(double(CB[i]) * SCB / 127.0);
    }
  });
}
