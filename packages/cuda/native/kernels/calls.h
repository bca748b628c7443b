// What kernels are given: one struct a kernel, passed by value, laid out alike by both compilers (pointers and 64-bit numbers
// first). The plugin fills them (../ops/*.cpp) after checking the op's call; what an op computes is written in ops.ts.
// Strides are in elements, the last dimension has stride 1; `dtype` is an ms_dtype. Optional pointers may be null.
// There is no padding: the emulated driver looks for pointers among an argument's bytes, and all of them have to be somebody's.
#pragma once
#include <metashard/backend.h>
#include <stdint.h>

#ifndef __CUDACC__
#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"
#endif

struct ms_embedding_call {
  const int32_t *ids;  // [tokens]
  const void *table;   // [V, H]
  float *out;          // [tokens, H]
  int64_t V, H, table_stride, out_stride;
  int64_t table_dtype;
};

struct ms_layer_norm_call {
  const float *x;      // [rows, H]
  const void *weight;  // [H]
  const void *bias;    // [H], optional
  float *out;          // [rows, H]
  int64_t H, x_stride, out_stride;
  double epsilon;
  int32_t weight_dtype, bias_dtype;
};

struct ms_rms_norm_call {
  const float *x;      // [rows, H]
  const void *weight;  // [H]
  float *out;          // [rows, H]
  int64_t H, x_stride, out_stride;
  double epsilon;
  int64_t weight_dtype;
};

struct ms_linear_call {
  const float *x;      // [rows, K]
  const void *weight;  // [N, K]
  const void *bias;    // [N], optional
  float *out;          // [rows, N]
  int64_t rows, K, N, x_stride, weight_stride, out_stride;
  int32_t weight_dtype, bias_dtype;
};

struct ms_int8_quantize_call {
  const float *x;         // [rows, K]
  int8_t *CA;             // [rows, K]
  float *SCA;             // [rows]
  int32_t *outlier_cols;  // [K + 1]
  uint32_t *flags;        // bit k % 32 of word k / 32: column k holds an outlier; zero before
  int64_t K, x_stride, CA_stride;
  float threshold;  // 0: no outliers; rounded up to float32, so that |x| < threshold means what it does in float64
  int32_t per_row;
};

// Rows of int8 as words of four columns, zeros behind the last.
struct ms_int8_pad_rows_call {
  const int8_t *source;  // [rows, K]
  int32_t *padded;       // [rows, words]
  int64_t K, source_stride, words;
};

// CA [rows, K] · CBᵀ [N, K].
struct ms_int8_product {
  const int32_t *CA;  // [rows, words]: four columns a word, zeros behind column K - 1
  const int8_t *CB;   // packed (MS_PACKED_INT8)
  int64_t rows, N, K, words, CA_stride;
};

struct ms_int8_linear_call {
  ms_int8_product product;
  const float *x;               // [rows, K]
  const float *SCA;             // [rows]
  const int32_t *outlier_cols;  // [K + 1]
  const float *SCB;             // [N]
  const void *bias;             // [N], optional
  float *out;                   // [rows, N]
  int64_t x_stride, out_stride, bias_dtype;
  float threshold;  // as above
  int32_t per_row;
};

struct ms_int8_matmul_call {
  ms_int8_product product;
  int32_t *out;  // [rows, N]
  int64_t out_stride;
};

struct ms_int8_weight_linear_call {
  const float *x;    // [rows, K]
  const int8_t *CB;  // [N, K] packed
  const float *SCB;  // [N]
  const void *bias;  // [N], optional
  float *out;        // [rows, N]
  int64_t rows, K, N, x_stride, out_stride, bias_dtype;
};

struct ms_int8_embedding_call {
  const int32_t *ids;  // [tokens]
  const int8_t *CB;    // [V, H] strided, or packed
  const float *SCB;    // [V]
  float *out;          // [tokens, H]
  int64_t V, H, CB_stride, out_stride;
  int64_t packed;
};

struct ms_quantize_weight_call {
  const void *weight;  // [N, K]
  int8_t *CB;          // [N, K] strided, or packed
  float *SCB;          // [N]
  int64_t N, K, weight_stride, CB_stride;
  int32_t weight_dtype, float16_first;
};

struct ms_dequantize_weight_call {
  const int8_t *CB;  // [N, K] strided, or packed
  const float *SCB;  // [N]
  float *weight;     // [N, K]
  int64_t N, K, CB_stride, weight_stride;
  int64_t packed;
};

struct ms_pack_int8_call {
  const int8_t *source;  // [N, K]
  int8_t *packed;
  int64_t N, K, source_stride;
};

struct ms_unpack_int8_call {
  const int8_t *packed;
  int8_t *out;  // [N, K]
  int64_t N, K, out_stride;
};

struct ms_attention_call {
  const float *q;                  // [tokens, N, D]
  const float *k, *v;              // [tokens, KV, D]
  void *cache_k, *cache_v;         // [blocks, KV, block_size, D], optional
  const int32_t *query_starts;     // [sequences]
  const int32_t *query_lengths;    // [sequences]
  const int32_t *context_lengths;  // [sequences]
  const int32_t *block_tables;     // [sequences, table_columns], with a cache
  const float *alibi_slopes;       // [N], optional
  float *out;                      // [tokens, N, D]
  int64_t q_stride[2], k_stride[2], v_stride[2], out_stride[2];  // of a token, of a head
  int64_t cache_k_stride[3], cache_v_stride[3];                  // of a block, of a head, of a row
  int64_t tokens, table_columns, table_stride;
  float scale, softcap;
  int32_t sequences, N, KV, D, blocks, block_size, cache_dtype, causal;
  int32_t window;  // 0: none
  // How work is cut: a block takes tokens_per_tile tokens of one sequence and heads_per_tile of the heads that share a kv head,
  // and goes through its key positions keys_per_tile at a time.
  int32_t heads_per_tile, tokens_per_tile, keys_per_tile;
};

struct ms_rope_table_call {
  const int32_t *positions;          // [tokens]
  const float *inverse_frequencies;  // [half]
  float *cos, *sin;                  // [tokens, half]
  int64_t tokens, half, cos_stride, sin_stride;
  double scaling;
};

struct ms_rope_call {
  const float *x;           // [tokens, N, D]
  const float *cos, *sin;   // [tokens, half]
  float *out;               // [tokens, N, D], may be x
  int64_t N, D, half, cos_stride, sin_stride;
  int64_t x_stride[2], out_stride[2];  // of a token, of a head
  int64_t interleaved;
};

// Elements of up to three operands of one shape in row-major order, the output first. Dimensions that all operands step over
// evenly are merged; those left, 1 to 4, are listed from the innermost on.
struct ms_elements {
  int64_t count;
  int64_t shape[4];
  int64_t stride[3][4];
  int64_t rank;
};

struct ms_activation_call {
  float *out;
  const float *x;
  ms_elements elements;
  int64_t kind;  // index of ACTIVATION_KINDS
};

struct ms_binary_call {
  float *out;
  const float *a, *b;
  ms_elements elements;
};

struct ms_cast_call {
  void *out;
  const void *x;
  ms_elements elements;
  int32_t out_dtype, x_dtype;
};

struct ms_copy_call {
  void *out;
  const void *x;
  ms_elements elements;
  int64_t element_bytes;
};

struct ms_select_rows_call {
  const float *x;       // [tokens, H]
  const int32_t *rows;  // [outputs]
  float *out;           // [outputs, H]
  int64_t tokens, H, x_stride, out_stride;
};

struct ms_argmax_call {
  const float *x;  // [rows, V]
  int32_t *out;    // [rows]
  int64_t V, x_stride;
};

// One row of the op.
struct ms_sample_call {
  const float *logits;             // [V]
  const float *parameters;         // temperature, top_k, top_p, repetition_penalty
  const float *uniform;            // 1 number
  const int32_t *history;          // [L]
  const int32_t *history_length;   // 1 number
  int32_t *id;                     // 1 number
  double *weights;                 // [V] scratch
  uint32_t *seen;                  // [ceil(V / 32)] scratch
  int64_t V, L;
};

#ifndef __CUDACC__
#pragma GCC diagnostic pop
#endif
