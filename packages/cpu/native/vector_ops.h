// The seam between the ops and their inner loops over rows of floats: one table per instruction set, all three built from the
// one source isa/vector_ops.inc with different flags. They differ from each other by float32 rounding only. Matrix kernels:
// kernels.h.
#pragma once
#include <stdint.h>

// Where the keys (or the values) of one kv head of one sequence lie. A row has D elements; behind those of int8 lies their
// float32 scale.
struct kv_rows {
  const char *base;     // position 0: of block 0 of the cache, or of the sequence's rows in this call
  int64_t row_bytes;    // from one position to the next
  int64_t block_bytes;  // from one block to the next; used with a block table only
};

// One task of attention: `tokens` query tokens of one sequence and `heads` query heads that share one kv head, over the key
// positions keys_begin … keys_end - 1 (which positions a token sees within them: causal, window).
struct attention_tile {
  const float *q;  // [tokens, heads, D]
  int64_t q_token_stride, q_head_stride;
  float *out;  // [tokens, heads, D]
  int64_t out_token_stride, out_head_stride;
  int64_t tokens, heads, D;
  int64_t first_position;  // of the first query token
  int64_t keys_begin, keys_end;
  kv_rows k, v;
  const int32_t *block_table;  // NULL: positions follow each other at row_bytes
  int64_t block_size;
  const float *slopes;  // ALiBi, [heads] or NULL
  float scale, softcap;
  int64_t window;  // 0: none
  int32_t kv_dtype;
  int32_t causal;
  // NULL, or where to leave the unfinished sums instead of `out`: [tokens * heads][D + 2], the weighted values and, behind
  // them, the softmax's base and the sum of weights.
  float *partial;
};

// Query rows (tokens * heads) and key positions of a tile at most, by head size alone, so that all fits the thread's workspace:
// query rows twice, keys and values as float32. Whole sixteens where there are as many.
constexpr int64_t attention_most_rows = 128, attention_most_keys = 64;
constexpr int64_t attention_largest_D = 12288;
inline int64_t attention_whole(int64_t count, int64_t most) {
  if (count >= most) return most;
  return count >= 16 ? count / 16 * 16 : count;
}
inline int64_t attention_tile_rows(int64_t D) { return attention_whole(12288 / ((D + 15) / 16 * 16), attention_most_rows); }
inline int64_t attention_tile_keys(int64_t D) { return attention_whole(16384 / ((D + 15) / 16 * 16), attention_most_keys); }

// How one row of rope turns: features (i, i + half), or (2i, 2i + 1) where interleaved; those from 2 * half on are copied.
struct rope_row {
  float *out;
  const float *x;
  const float *cos, *sin;  // [half]
  int64_t half, D;
};

struct vector_ops {
  void (*to_float32)(float *out, const void *in, int32_t dtype, int64_t n);    // from a float dtype
  void (*from_float32)(void *out, int32_t dtype, const float *in, int64_t n);  // to a float dtype
  // n int8 values and, behind them, the float32 they are to be multiplied with (NaN where the row has a NaN or an infinity).
  void (*quantize_row)(void *out, const float *in, int64_t n);
  void (*add)(float *out, const float *a, const float *b, int64_t n);
  void (*mul)(float *out, const float *a, const float *b, int64_t n);
  void (*activation)(float *out, const float *x, int64_t n, int32_t kind);  // kind: index of ACTIVATION_KINDS in ops.ts
  // One row of H; bias may be NULL. Sums in float64.
  void (*layer_norm)(float *out, const float *x, const void *weight, int32_t weight_dtype, const void *bias, int32_t bias_dtype,
                     int64_t H, double epsilon);
  void (*rms_norm)(float *out, const float *x, const void *weight, int32_t weight_dtype, int64_t H, double epsilon);
  void (*rope)(const rope_row *row);
  void (*rope_interleaved)(const rope_row *row);
  int64_t (*argmax)(const float *x, int64_t n);
  void (*attention)(const attention_tile *tile);
};

extern const vector_ops vector_ops_portable;
extern const vector_ops vector_ops_avx2;
extern const vector_ops vector_ops_avx512;
