// Attention of many query rows by VDPBF16PS (reference: Intel SDM; it rounds to nearest even and takes denormals as zero): the
// blocks of the float32 product, whose step is a pair. Compiled with -mavx512bf16, used where processor.h finds it fast.
#include "attention_bfloat16.h"

#include "entries.h"

namespace {

struct pair_rows {
  const float *first;
  int64_t stride;
  const float *at(int64_t k) const { return first + k * stride; }
};
inline vfloat product_step(const pair_rows &, vfloat sum, vfloat a, vfloat b) {
  return (vfloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

struct multiply_by_vectors {
  int rows_at_once(int64_t left) const { return ::rows_at_once(left); }
  __m512i pairs(vfloat low, vfloat high) const { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }

  template <bool ADD>
  void sums(int rows, const uint32_t *A, int64_t A_stride, const uint32_t *B, int64_t B_stride, int64_t pairs, int64_t columns,
            float *C, int64_t C_stride) const {
    product<ADD>(rows, (const float *)A, A_stride, pair_rows{(const float *)B, B_stride}, 0, pairs, columns, C, C_stride);
  }
};

}  // namespace

namespace avx512 {

void attention_bfloat16(const attention_tile *tile) {
  if (takes_bfloat16(*tile)) run_tile<bfloat16_product<multiply_by_vectors>>(tile);
  else run_tile<float_product>(tile);
}

}  // namespace avx512
