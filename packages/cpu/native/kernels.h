// The seam between the ops (ops/*.cc, which check a call) and the matrix kernels (portable here, hand-tuned in avx2, avx512,
// amx). One table of functions per instruction set level; a level fills in what it has over the level below. What each computes
// is specified in packages/core/src/ops.ts; this header adds how operands arrive. Vector ops (norms, attention, …) are in
// vector_ops.h.
//
// What a kernel may rely on (ops check it): rows, K and N are at least 1, so are strides where the dimension is over 1; the
// last dimension has stride 1; row strides (in elements) may be larger than the row or, for inputs, smaller (0 repeats a row);
// pointers are aligned to their element only, packed matrices and scratch to 64 bytes; outputs overlap nothing. All index
// arithmetic is 64-bit. A kernel splits its work with parallel_for itself, and its result does not depend on the number of
// threads.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "metashard/backend.h"

struct attention_tile;

// out[t, n] = sum over k of x[t, k] * weight[n, k] + bias[n], accumulated in float32 or wider.
struct linear_call {
  int64_t rows, K, N;
  const float *x;  // [rows, K]
  int64_t x_stride;
  const void *weight;  // [N, K] of weight_dtype: MS_FLOAT32, MS_FLOAT16 or MS_BFLOAT16
  int64_t weight_stride;
  const void *bias;  // [N] of bias_dtype (any float, may differ from the weight's), stride 1, or NULL
  float *out;        // [rows, N]
  int64_t out_stride;
  int32_t weight_dtype;
  int32_t bias_dtype;
};

// threshold is the attribute rounded up to float32, so that |x| < threshold in float32 says what it says in float64. 0: no
// outliers. scale = 127 / SCA[t], one IEEE float32 division; CA = rint(x * scale), one float32 product, ties to even; 0 where
// that is NaN or SCA is 0. Where scale is infinite (0 < SCA < 3.74e-37) CA = rint(x * 127 / SCA) in float64 (int8_of_tiny in
// floats.h). With threshold 0 SCA is the row's absmax, NaN if it holds a NaN.
struct int8_quantize_call {
  int64_t rows, K;
  const float *x;  // [rows, K]
  int64_t x_stride;
  int8_t *CA;  // [rows, K]
  int64_t CA_stride;
  float *SCA;             // [rows], stride 1
  int32_t *outlier_cols;  // [K + 1], stride 1: count, ascending columns; entries after them are undefined
  float threshold;
  int32_t per_row;
  uint8_t *scratch;  // round_up(K, 64) + 64 bytes
};

// out = (CA · CBᵀ) * SCA * SCB / 127² + Σ over outliers x[t, k] * CB[n, k] * SCB[n] / 127 + bias. The portable kernel works in
// float64 with one rounding at the end; the others end within one float32 rounding of each term's exact value and of the sum.
// per_row 0: the outliers are the columns outlier_cols lists; 1: of those columns the elements with not |x| < threshold.
struct int8_linear_call {
  int64_t rows, K, N;
  const float *x;  // [rows, K]
  int64_t x_stride;
  const int8_t *CA;  // [rows, K]
  int64_t CA_stride;
  const float *SCA;             // [rows], stride 1
  const int32_t *outlier_cols;  // [K + 1], stride 1
  const int8_t *CB;             // [N, K], or MS_PACKED_INT8 where packed
  int64_t CB_stride;            // where not packed
  const float *SCB;             // [N], stride 1
  const void *bias;             // [N] of bias_dtype, stride 1, or NULL
  float *out;                   // [rows, N]
  int64_t out_stride;
  int32_t packed;
  int32_t bias_dtype;
  float threshold;  // rounded up as above
  int32_t per_row;
  uint8_t *scratch;  // round_up(rows, 48) * round_up(K, 64) + 4096, and where not packed round_up(packed_int8_bytes(N, K), 64)
};

// accumulators[t, n] = sum over k of CA[t, k] * CB[n, k], exact in int32. CA and CB may hold any int8, -128 included.
struct int8_matmul_call {
  int64_t rows, K, N;
  const int8_t *CA;  // [rows, K]
  int64_t CA_stride;
  const int8_t *CB;  // [N, K], or MS_PACKED_INT8 where packed
  int64_t CB_stride;
  int32_t *out;  // [rows, N]
  int64_t out_stride;
  int32_t packed;
  uint8_t *scratch;  // as int8_linear
};

// SCB[n] = max over k of |w[n, k]| (NaN if there is one), CB = rint(w * scale) in float32 with scale = 127 / SCB, one division.
// float16_first: w is rounded to float16 before, and scale = fl(fl(1 / SCB) * 127). 0 where SCB is 0 or the product is NaN;
// where scale is infinite CB = rint(w * 127 / SCB) in float64, as int8_quantize. A packed CB gets zeros in absent rows and
// columns and row sums.
struct quantize_weight_call {
  int64_t N, K;
  const void *weight;  // [N, K] of weight_dtype
  int64_t weight_stride;
  int8_t *CB;  // [N, K], or MS_PACKED_INT8 where packed
  int64_t CB_stride;
  float *SCB;  // [N], stride 1
  int32_t weight_dtype;
  int32_t packed;
  int32_t float16_first;
};

// Strided CB [N, K] → packed (pack_int8), packed → strided CB (unpack_int8).
struct pack_int8_call {
  int64_t N, K;
  const int8_t *source;
  int8_t *destination;
  int64_t stride;  // of the strided side
};

// weight[n, k] = CB[n, k] * SCB[n] / 127: the product in float64, rounded once.
struct dequantize_weight_call {
  int64_t N, K;
  const int8_t *CB;
  int64_t CB_stride;
  const float *SCB;
  float *weight;  // [N, K]
  int64_t weight_stride;
  int32_t packed;
};

// out[t, n] = sum over k of x[t, k] * CB[n, k] * SCB[n] / 127 + bias[n]. The portable kernel works in float64 with one rounding
// at the end; the others sum in float32. bfloat16: with many rows x may be rounded to bfloat16 (round-to-nearest-even,
// values below the smallest normal flushed), in which CB is exact; sums stay float32.
struct int8_weight_linear_call {
  int64_t rows, K, N;
  const float *x;  // [rows, K]
  int64_t x_stride;
  const int8_t *CB;   // [N, K], or MS_PACKED_INT8 where packed
  int64_t CB_stride;  // where not packed
  const float *SCB;   // [N], stride 1
  const void *bias;   // [N] of bias_dtype, stride 1, or NULL
  float *out;         // [rows, N]
  int64_t out_stride;
  int32_t packed;
  int32_t bias_dtype;
  int32_t bfloat16;
  // Where bfloat16: round_up(rows, 48) * round_up(K, 64) * 2 + 4096 bytes; where not packed, and behind that:
  // round_up(packed_int8_bytes(N, K), 64).
  uint8_t *scratch;
};

struct cpu_kernels {
  void (*linear)(const linear_call *call);
  void (*int8_quantize)(const int8_quantize_call *call);
  void (*int8_linear)(const int8_linear_call *call);
  void (*int8_matmul)(const int8_matmul_call *call);
  void (*quantize_weight)(const quantize_weight_call *call);
  void (*pack_int8)(const pack_int8_call *call);
  void (*unpack_int8)(const pack_int8_call *call);
  void (*dequantize_weight)(const dequantize_weight_call *call);
  void (*int8_weight_linear)(const int8_weight_linear_call *call);
  // vector_ops.h's attention where operands may be rounded to bfloat16; NULL where that is not faster.
  void (*attention_bfloat16)(const attention_tile *tile);
};

// Plain loops, the oracle of the others.
const cpu_kernels *kernels_portable(void);

// Overwrite the entries this level has. Called once, only on a processor that has the level:
// avx2: AVX2, FMA, F16C. avx512: those and AVX512 F, BW, VL, DQ, VNNI. amx: those and AMX-TILE, AMX-INT8, permission granted.
void kernels_avx2(cpu_kernels *table);
void kernels_avx512(cpu_kernels *table);
// Over kernels_avx512, where AVX512-BF16 is fast (processor.h).
void kernels_avx512_bfloat16(cpu_kernels *table);
void kernels_amx(cpu_kernels *table);
// Over kernels_amx, where there is AMX-BF16, too.
void kernels_amx_bfloat16(cpu_kernels *table);

// Bytes of an int8 matrix [N, K] in the packed layout of backend.h.
static inline int64_t packed_int8_bytes(int64_t N, int64_t K) { return (N + 15) / 16 * (16 * ((K + 63) / 64 * 64) + 64); }
