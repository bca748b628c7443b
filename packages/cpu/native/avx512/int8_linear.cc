// int8_linear and int8_matmul by VPDPBUSD: 12 rows × 32 columns of accumulators in registers, activations as u8 = s8 + 128,
// the surplus 128 · (row sum of the weight) subtracted at the end (reference: Intel SDM, VPDPBUSD; the sums wrap modulo
// 2^32, as they may). Floors: many rows: 2 · M · N · K / peak of VPDPBUSD; few rows: one read of the weights. Reached on 2
// cores of a Zen 5 with 7 outlier columns, int8_quantize included: 512 rows 0.84 (4096 × 4096), 0.78 (1024 × 1024) of the
// peak, without int8_quantize 0.87 and 0.80; 1 row 1.00 of a plain read, 8 rows 0.91 (1.08 × the time of 1 row), 0.8 where K is
// 1024.
#include "int8_panels.h"
#include "entries.h"
#include "lanes.h"
#include "unroll.h"

namespace {

// The empty asm keeps the sum in one register: GCC 12 would carry it from step to step under two vector types, and spill.
inline __m512i add_products(__m512i sum, __m512i activations, __m512i weights) {
  __m512i result = _mm512_dpbusd_epi32(sum, activations, weights);
  asm("" : "+v"(result));
  return result;
}

template <int rows>
void dot_rows(const uint8_t *panel, const int8_t *w0, const int8_t *w1, int64_t quads, int64_t ahead, int32_t *tile) {
  // Few rows: several independent sums, to cover the latency of the instruction.
  constexpr int chains = rows == 1 ? 4 : rows <= 3 ? 2 : 1;
  __m512i sums[chains][rows][2];
  unroll<chains>([&](auto c) { unroll<rows>([&](auto r) { sums[c][r][0] = sums[c][r][1] = _mm512_setzero_si512(); }); });
  // Behind the second block comes the next pair's first, behind the first one the second, which is being read: towards the end
  // the next pair's second block is prefetched instead.
  const int64_t turn = ahead < quads * 64 ? quads - ahead / 64 : quads, ahead_turned = ahead + 2 * (quads + 1) * 64;
  for (int64_t q = 0; q < quads; q += chains) {
    const int64_t ahead0 = q < turn ? ahead : ahead_turned;
    unroll<chains>([&](auto c) {
      const int8_t *line0 = w0 + (q + c) * 64, *line1 = w1 + (q + c) * 64;
      const __m512i b0 = _mm512_load_si512(line0), b1 = _mm512_load_si512(line1);
      _mm_prefetch(reinterpret_cast<const char *>(line0 + ahead0), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char *>(line1 + ahead), _MM_HINT_T0);
      unroll<rows>([&](auto r) {
        int32_t quad;
        memcpy(&quad, panel + ((q + c) * rows + r) * 4, 4);
        const __m512i a = _mm512_set1_epi32(quad);
        sums[c][r][0] = add_products(sums[c][r][0], a, b0);
        sums[c][r][1] = add_products(sums[c][r][1], a, b1);
      });
    });
  }
  const __m512i surplus0 = _mm512_slli_epi32(_mm512_load_si512(w0 + quads * 64), 7);
  const __m512i surplus1 = _mm512_slli_epi32(_mm512_load_si512(w1 + quads * 64), 7);
  unroll<rows>([&](auto r) {
    unroll<chains - 1>([&](auto c) {
      sums[0][r][0] = _mm512_add_epi32(sums[0][r][0], sums[c + 1][r][0]);
      sums[0][r][1] = _mm512_add_epi32(sums[0][r][1], sums[c + 1][r][1]);
    });
    _mm512_store_si512(tile + r * pair_columns, _mm512_sub_epi32(sums[0][r][0], surplus0));
    _mm512_store_si512(tile + r * pair_columns + 16, _mm512_sub_epi32(sums[0][r][1], surplus1));
  });
}

// The columns of one block. Where weights come from memory, several rows take them as a single stream, fetched further ahead:
// they pass too slowly for the fetching in two streams to keep the memory at work.
template <int rows>
void dot_block(const uint8_t *panel, const int8_t *w, int64_t quads, int32_t *tile) {
  constexpr int chains = 2;
  constexpr int64_t ahead = 8192;
  __m512i sums[chains][rows];
  unroll<chains>([&](auto c) { unroll<rows>([&](auto r) { sums[c][r] = _mm512_setzero_si512(); }); });
  for (int64_t q = 0; q < quads; q += chains) {
    unroll<chains>([&](auto c) {
      const int8_t *line = w + (q + c) * 64;
      const __m512i weights = _mm512_load_si512(line);
      _mm_prefetch(reinterpret_cast<const char *>(line + ahead), _MM_HINT_T0);
      unroll<rows>([&](auto r) {
        int32_t quad;
        memcpy(&quad, panel + ((q + c) * rows + r) * 4, 4);
        sums[c][r] = add_products(sums[c][r], _mm512_set1_epi32(quad), weights);
      });
    });
  }
  const __m512i surplus = _mm512_slli_epi32(_mm512_load_si512(w + quads * 64), 7);
  unroll<rows>([&](auto r) {
    const __m512i sum = _mm512_add_epi32(sums[0][r], sums[1][r]);
    _mm512_store_si512(tile + r * pair_columns, _mm512_sub_epi32(sum, surplus));
  });
}

template <int R>
void dot_once_by_rows(int rows, const uint8_t *panel, const int8_t *w0, const int8_t *w1, int64_t quads, int32_t *tile) {
  if (rows == R) {
    if constexpr (R <= 3) return dot_rows<R>(panel, w0, w1, quads, stream_ahead, tile);
    dot_block<R>(panel, w0, quads, tile);
    dot_block<R>(panel, w1, quads, tile + block_rows);
  } else if constexpr (R > 1) {
    dot_once_by_rows<R - 1>(rows, panel, w0, w1, quads, tile);
  }
}

template <int R>
void dot_by_rows(int rows, const uint8_t *panel, const int8_t *w0, const int8_t *w1, int64_t quads, int64_t ahead,
                 int32_t *tile) {
  if (rows == R) return dot_rows<R>(panel, w0, w1, quads, ahead, tile);
  if constexpr (R > 1) dot_by_rows<R - 1>(rows, panel, w0, w1, quads, ahead, tile);
}

struct vnni_kernel {
  static constexpr int max_rows = 12;
  static constexpr uint32_t activation_xor = 0x80;
  static constexpr double products_per_cycle = 128;

  static void dot(int rows, const uint8_t *panel, const int8_t *w0, const int8_t *w1, int64_t quads, int64_t ahead,
                  int32_t *tile) {
    dot_by_rows<max_rows>(rows, panel, w0, w1, quads, ahead, tile);
  }

  static void dot_once(int rows, const uint8_t *panel, const int8_t *w0, const int8_t *w1, int64_t quads, int32_t *tile) {
    dot_once_by_rows<max_rows>(rows, panel, w0, w1, quads, tile);
  }

  // Here the weight is the u8 one: Σ (w + 128) · a - 128 · Σ a.
  static int32_t dot_strided(const int8_t *a, const int8_t *w, int64_t K) {
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512i sums = _mm512_setzero_si512(), surplus = sums;
    for (int64_t k = 0; k < K; k += 64) {
      const __mmask64 present = K - k < 64 ? (1ull << (K - k)) - 1 : ~0ull;
      const __m512i activations = _mm512_maskz_loadu_epi8(present, a + k);
      sums = _mm512_dpbusd_epi32(sums, _mm512_xor_si512(_mm512_maskz_loadu_epi8(present, w + k), flip), activations);
      surplus = _mm512_dpbusd_epi32(surplus, flip, activations);
    }
    return _mm512_reduce_add_epi32(_mm512_sub_epi32(sums, surplus));
  }
};

}  // namespace

namespace avx512 {

void int8_linear(const int8_linear_call *call) { multiply_linear<lanes, vnni_kernel>(call); }
void int8_matmul(const int8_matmul_call *call) { multiply_int8<lanes, vnni_kernel>(call); }

}  // namespace avx512
