// int8_linear and int8_matmul by VPMADDWD over bytes widened to int16: exact for every int8 (VPMADDUBSW would saturate at
// 255 · 127 · 2). A quarter line of a packed block, 4 columns × 4 k, becomes 16 words; a product leaves two partial sums a
// column. Floors: 1 row: one read of the weights; many rows: a multiply and an add per 16 products. Reached on 2 cores of a
// Zen 5: 1 row 0.89 of a plain read; 512 rows 0.27 TOPS, 0.55 of what the saturating VPMADDUBSW chain would reach.
#include "int8_panels.h"
#include "entries.h"
#include "lanes.h"
#include "unroll.h"

namespace {

inline __m256i widen_bytes(const int8_t *p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}

// The 4 activations of a row at this k, four times over, as words.
inline __m256i widen_quad(const uint8_t *p) {
  int32_t quad;
  memcpy(&quad, p, 4);
  return _mm256_cvtepi8_epi16(_mm_set1_epi32(quad));
}

// The empty asm keeps the sum in one register: GCC 12 would carry it from step to step under two vector types, and spill.
inline __m256i add_products(__m256i sum, __m256i activations, __m256i weights) {
  __m256i result = _mm256_add_epi32(sum, _mm256_madd_epi16(activations, weights));
  asm("" : "+x"(result));
  return result;
}

// tile[r][0 … 4 * quarters - 1] for `quarters` quarter lines from w on.
template <int rows, int quarters>
void dot_quarters(const uint8_t *panel, const int8_t *w, int64_t quads, int64_t ahead, int32_t *tile) {
  __m256i sums[rows][quarters];
  unroll<rows>([&](auto r) { unroll<quarters>([&](auto i) { sums[r][i] = _mm256_setzero_si256(); }); });
  for (int64_t q = 0; q < quads; q++, w += 64, panel += rows * 4) {
    __m256i b[quarters];
    unroll<quarters>([&](auto i) { b[i] = widen_bytes(w + i * 16); });
    _mm_prefetch(reinterpret_cast<const char *>(w + ahead), _MM_HINT_T0);
    unroll<rows>([&](auto r) {
      const __m256i a = widen_quad(panel + r * 4);
      unroll<quarters>([&](auto i) { sums[r][i] = add_products(sums[r][i], a, b[i]); });
    });
  }
  unroll<rows>([&](auto r) {
    unroll<quarters / 2>([&](auto i) {  // hadd works in 128-bit halves: columns 0 1 4 5 2 3 6 7
      const __m256i eight = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[r][2 * i], sums[r][2 * i + 1]), 0xd8);
      _mm256_store_si256(reinterpret_cast<__m256i *>(tile + r * pair_columns + i * 8), eight);
    });
  });
}

// Registers: rows × quarters sums, the widened weights, one activation.
template <int rows>
void dot_rows(const uint8_t *panel, const int8_t *w0, const int8_t *w1, int64_t quads, int64_t ahead, int32_t *tile) {
  constexpr int quarters = rows <= 2 ? 4 : 2;
  for (int half = 0; half < 2; half++) {
    const int8_t *w = half == 0 ? w0 : w1;
    for (int i = 0; i < 4; i += quarters) {
      dot_quarters<rows, quarters>(panel, w + i * 16, quads, ahead, tile + half * block_rows + i * 4);
    }
  }
}

template <int R>
void dot_by_rows(int rows, const uint8_t *panel, const int8_t *w0, const int8_t *w1, int64_t quads, int64_t ahead,
                 int32_t *tile) {
  if (rows == R) return dot_rows<R>(panel, w0, w1, quads, ahead, tile);
  if constexpr (R > 1) dot_by_rows<R - 1>(rows, panel, w0, w1, quads, ahead, tile);
}

struct widening_kernel {
  static constexpr int max_rows = 6;
  static constexpr uint32_t activation_xor = 0;
  static constexpr double products_per_cycle = 24;

  static void dot(int rows, const uint8_t *panel, const int8_t *w0, const int8_t *w1, int64_t quads, int64_t ahead,
                  int32_t *tile) {
    dot_by_rows<max_rows>(rows, panel, w0, w1, quads, ahead, tile);
  }

  static void dot_once(int rows, const uint8_t *panel, const int8_t *w0, const int8_t *w1, int64_t quads, int32_t *tile) {
    dot(rows, panel, w0, w1, quads, stream_ahead, tile);
  }

  static int32_t dot_strided(const int8_t *a, const int8_t *w, int64_t K) {
    __m256i sums = _mm256_setzero_si256();
    int64_t k = 0;
    for (; k + 16 <= K; k += 16) sums = _mm256_add_epi32(sums, _mm256_madd_epi16(widen_bytes(a + k), widen_bytes(w + k)));
    alignas(32) int32_t parts[8];
    _mm256_store_si256(reinterpret_cast<__m256i *>(parts), sums);
    uint32_t total = 0;  // wraps as the vector does
    for (int32_t part : parts) total += static_cast<uint32_t>(part);
    for (; k < K; k++) total += static_cast<uint32_t>(a[k] * w[k]);
    return static_cast<int32_t>(total);
  }
};

}  // namespace

namespace avx2 {

void int8_linear(const int8_linear_call *call) { multiply_linear<lanes, widening_kernel>(call); }
void int8_matmul(const int8_matmul_call *call) { multiply_int8<lanes, widening_kernel>(call); }

}  // namespace avx2
