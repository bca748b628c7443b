// Row-wise absmax quantization to int8 (LLM.int8(), Dettmers et al. 2022, section 3) of activations and of weights, over
// the lanes of one instruction set. Two passes a row, the second from cache; rules and rounding as kernels.h says, bit for
// bit as the portable one.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "floats.h"
#include "kernels.h"
#include "packed_blocks.h"
#include "tasks.h"

namespace {

// ---- activations ----

// Sets flags[i] for the bits of an outlier mask. Several threads may set the same flag.
inline void mark_outliers(uint8_t *flags, uint32_t bits) {
  for (; bits; bits &= bits - 1) __atomic_store_n(flags + __builtin_ctz(bits), uint8_t{1}, __ATOMIC_RELAXED);
}

// The indices of set flags, ascending; returns their number. flags is readable to a multiple of 8 and zero beyond K.
inline int32_t list_flags(const uint8_t *flags, int64_t K, int32_t *indices) {
  int32_t count = 0;
  for (int64_t k = 0; k < K; k += 8) {
    uint64_t word;
    memcpy(&word, flags + k, 8);
    for (; word; word &= word - 1) indices[count++] = static_cast<int32_t>(k + __builtin_ctzll(word) / 8);
  }
  return count;
}

// max |x| over the elements below the threshold; those not below it are marked in flags [K].
template <class L>
float absmax_below(const float *x, int64_t K, float threshold, uint8_t *flags) {
  const typename L::floats limit = L::set1(threshold);
  typename L::floats maximum = L::zero();
  const auto step = [&](typename L::floats magnitude, int64_t k) {
    maximum = L::max(L::keep_below(magnitude, limit), maximum);
    const uint32_t bits = L::not_below_bits(magnitude, limit);
    if (bits) mark_outliers(flags + k, bits);
  };
  int64_t k = 0;
  for (; k + L::width <= K; k += L::width) step(L::abs(L::load(x + k)), k);
  if (k < K) step(L::abs(L::load_partial(x + k, K - k)), k);
  return L::maximum(maximum);
}

// max |x| of loads load(k) and load_partial(k, count); NaN where there is one.
template <class L, class Load, class LoadPartial>
float absmax_or_nan(int64_t K, const Load &load, const LoadPartial &load_partial) {
  typename L::floats maximum = L::zero();
  uint32_t nan = 0;
  const auto step = [&](typename L::floats magnitude) {
    maximum = L::max(magnitude, maximum);
    nan |= L::nan_bits(magnitude);
  };
  int64_t k = 0;
  for (; k + L::width <= K; k += L::width) step(L::abs(load(k)));
  if (k < K) step(L::abs(load_partial(k, K - k)));
  return nan ? NAN : L::maximum(maximum);
}

// CA of one row from its SCA; outliers (threshold > 0: elements not below it) become 0.
template <class L>
void quantize_activation_row(const float *x, int64_t K, float absmax, float threshold, int8_t *CA) {
  const float scale = absmax == 0 ? 0.0f : 127.0f / absmax;
  if (isinf(scale)) {
    for (int64_t k = 0; k < K; k++) {
      const bool outlier = threshold > 0 && !(fabsf(x[k]) < threshold);
      CA[k] = outlier ? int8_t{0} : int8_of_tiny(x[k], absmax);
    }
    return;
  }
  const typename L::floats factor = L::set1(scale);
  const typename L::floats limit = L::set1(threshold > 0 ? threshold : INFINITY);
  // Without a threshold only infinities are not below the limit: their product with the scale 0 is NaN and gives 0, too.
  int64_t k = 0;
  for (; k + L::width <= K; k += L::width) L::store_int8(CA + k, L::round_scaled(L::keep_below(L::load(x + k), limit), factor));
  if (k < K) L::store_int8_partial(CA + k, L::round_scaled(L::keep_below(L::load_partial(x + k, K - k), limit), factor), K - k);
}

template <class L>
void quantize_rows(const int8_quantize_call *call) {
  const int64_t K = call->K;
  const bool outliers = call->threshold > 0;
  if (outliers) memset(call->scratch, 0, static_cast<size_t>(round_up(K, 8)));
  for_each_range(call->rows, static_cast<double>(K) * 0.75, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) {
      const float *x = call->x + t * call->x_stride;
      const auto load = [&](int64_t k) { return L::load(x + k); };
      const auto load_partial = [&](int64_t k, int64_t count) { return L::load_partial(x + k, count); };
      const float absmax =
          outliers ? absmax_below<L>(x, K, call->threshold, call->scratch) : absmax_or_nan<L>(K, load, load_partial);
      call->SCA[t] = absmax;
      quantize_activation_row<L>(x, K, absmax, call->threshold, call->CA + t * call->CA_stride);
    }
  });
  const int32_t *columns = call->outlier_cols;
  const int32_t count = call->outlier_cols[0] = outliers ? list_flags(call->scratch, K, call->outlier_cols + 1) : 0;
  if (call->per_row || count == 0 || call->rows == 1) return;
  for_each_range(call->rows, count, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) {
      for (int32_t i = 1; i <= count; i++) call->CA[t * call->CA_stride + columns[i]] = 0;
    }
  });
}

// ---- weights ----

template <class L, int dtype, bool float16_first>
struct weight_quantizer {
  using floats = typename L::floats;

  static floats load(const void *base, int64_t index) {
    const floats v = L::template load_as<dtype>(base, index);
    return float16_first && dtype != MS_FLOAT16 ? L::through_float16(v) : v;
  }
  static floats load_partial(const void *base, int64_t index, int64_t count) {
    const floats v = L::template load_as_partial<dtype>(base, index, count);
    return float16_first && dtype != MS_FLOAT16 ? L::through_float16(v) : v;
  }
  static float absmax(const void *base, int64_t index, int64_t K) {
    return absmax_or_nan<L>(
        K, [&](int64_t k) { return load(base, index + k); },
        [&](int64_t k, int64_t count) { return load_partial(base, index + k, count); });
  }
  static float scale_of(float absmax) {
    if (absmax == 0) return 0;
    return float16_first ? 1.0f / absmax * 127.0f : 127.0f / absmax;
  }

  // `count` elements from `index` on, as int8.
  static void quantize(const void *base, int64_t index, int64_t count, float absmax, float scale, int8_t *out) {
    if (isinf(scale)) {  // float16 values are never that small
      for (int64_t k = 0; k < count; k++) out[k] = int8_of_tiny(load_float(base, dtype, index + k), absmax);
      return;
    }
    const floats factor = L::set1(scale);
    int64_t k = 0;
    for (; k + L::width <= count; k += L::width) L::store_int8(out + k, L::round_scaled(load(base, index + k), factor));
    if (k < count) L::store_int8_partial(out + k, L::round_scaled(load_partial(base, index + k, count - k), factor), count - k);
  }

  // The rows of block b (up to 16), packed or strided.
  static void quantize_block(const quantize_weight_call &call, int64_t b) {
    const int64_t n0 = b * block_rows, rows = smaller(block_rows, call.N - n0);
    float scale[block_rows];
    for (int64_t n = 0; n < rows; n++) {
      call.SCB[n0 + n] = absmax(call.weight, (n0 + n) * call.weight_stride, call.K);
      scale[n] = scale_of(call.SCB[n0 + n]);
    }
    if (!call.packed) {
      for (int64_t n = 0; n < rows; n++) {
        const int64_t row = n0 + n;
        quantize(call.weight, row * call.weight_stride, call.K, call.SCB[row], scale[n], call.CB + row * call.CB_stride);
      }
      return;
    }
    alignas(64) int8_t bytes[block_rows][tile_columns] = {};
    int8_t *block = call.CB + b * block_bytes(call.K);
    for (int64_t tile = 0; tile < block_tiles(call.K); tile++) {
      const int64_t k = tile * tile_columns, columns = smaller(tile_columns, call.K - k);
      if (columns < tile_columns) memset(bytes, 0, sizeof bytes);
      for (int64_t n = 0; n < rows; n++) {
        quantize(call.weight, (n0 + n) * call.weight_stride + k, columns, call.SCB[n0 + n], scale[n], bytes[n]);
      }
      transpose_tile<L>(bytes[0], tile_columns, block + tile * tile_bytes, tile_columns);
    }
    write_row_sums<L>(block, block_tiles(call.K));
  }

  static void run(const quantize_weight_call &call) {
    const double cycles_per_block = static_cast<double>(call.K) * block_rows;
    for_each_range(ceil_div(call.N, block_rows), cycles_per_block, [&](int64_t first, int64_t end) {
      for (int64_t b = first; b < end; b++) quantize_block(call, b);
    });
  }
};

template <class L, int dtype>
void quantize_weight_of(const quantize_weight_call &call) {
  if (call.float16_first) weight_quantizer<L, dtype, true>::run(call);
  else weight_quantizer<L, dtype, false>::run(call);
}

template <class L>
void quantize_weight_rows(const quantize_weight_call *call) {
  if (call->weight_dtype == MS_FLOAT16) quantize_weight_of<L, MS_FLOAT16>(*call);
  else if (call->weight_dtype == MS_BFLOAT16) quantize_weight_of<L, MS_BFLOAT16>(*call);
  else quantize_weight_of<L, MS_FLOAT32>(*call);
}

}  // namespace
