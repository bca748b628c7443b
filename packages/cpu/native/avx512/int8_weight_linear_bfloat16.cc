// int8_weight_linear by VDPBF16PS where the call allows bfloat16: 12 rows × 32 columns of sums in registers, x as panels
// [K/2][12 rows][2] (reference: Intel SDM, VDPBF16PS; it rounds to nearest even and takes denormals as zero). Few rows stay in
// float32: they wait for the weights anyway. Compiled with -mavx512bf16, used where processor.h finds it fast. Floor: 2 · M ·
// N · K / peak of VDPBF16PS (1.8 times that of the float32 multiply-add). Reached on a Zen 5: 512 rows 0.75 to 0.87 of it.
#include "entries.h"
#include "lanes.h"

#include "bfloat16_strips.h"

namespace {

struct bfloat16_dots {
  using element = uint32_t;  // a pair
  using registers = plain_registers;
  static constexpr int panel_rows = 12;
  static constexpr int strip_columns = bfloat16_strip_columns;
  static constexpr int64_t depth = 512;  // 32 KiB a strip
  static constexpr int64_t rows_at_once = 480;
  static constexpr double products_per_cycle = 60;

  const int8_weight_linear_call &call;
  const int8_t *packed;

  int64_t panel_pairs() const { return round_up(call.K, 32) / 2; }
  uint32_t *panel(int64_t t) const { return reinterpret_cast<uint32_t *>(call.scratch) + t * panel_pairs(); }

  const float *row_of(int64_t t) const { return call.x + smaller(t, call.rows - 1) * call.x_stride; }

  // Rows t … t + 11, the last one repeated beyond the end.
  void fill_panel(int64_t t) const {
    uint32_t *to = panel(t);
    for (int64_t k = 0; k < call.K; k += 2 * pair_lanes) {
      __m512 columns[pair_lanes];
      unroll<pair_lanes>([&](auto r) {
        if constexpr (r >= panel_rows) columns[r] = lanes::zero();
        else columns[r] = _mm512_castsi512_ps(bfloat16_pairs(row_of(t + r), k, call.K));
      });
      lanes::transpose(columns);
      unroll<pair_lanes>([&](auto pair) {
        lanes::store_partial(reinterpret_cast<float *>(to + pair * panel_rows), columns[pair], panel_rows);
      });
      to += pair_lanes * panel_rows;
    }
  }

  void fill_panels() const {
    for_each_range(ceil_div(call.rows, panel_rows), static_cast<double>(panel_rows * call.K), [&](int64_t first, int64_t end) {
      for (int64_t group = first; group < end; group++) fill_panel(group * panel_rows);
    });
  }

  void pack(const strip_range &range, uint32_t *strip) const { pack_bfloat16_strip(call, packed, range, strip); }

  template <int rows>
  void dots(int64_t t, const strip_range &range, const strip_range &next, const uint32_t *strip) const {
    __m512 sums[rows][2];
    unroll<rows>([&](auto r) { sums[r][0] = sums[r][1] = lanes::zero(); });
    const uint32_t *x = panel(t) + range.k0 / 2 * panel_rows;
    // One line of the next weights a step: those of one block, then those of the other.
    for (int half = 0; half < 2; half++) {
      const int8_t *ahead = lines_of(call, packed, next, half * block_rows);
      for (int64_t steps = ceil_div(range.count, 4); steps > 0; steps--, strip += strip_columns, x += panel_rows, ahead += 64) {
        const __m512bh b0 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(strip));
        const __m512bh b1 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(strip + 16));
        _mm_prefetch(reinterpret_cast<const char *>(ahead), _MM_HINT_T1);
        unroll<rows>([&](auto r) {
          const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(x[r])));
          sums[r][0] = _mm512_dpbf16_ps(sums[r][0], a, b0);
          sums[r][1] = _mm512_dpbf16_ps(sums[r][1], a, b1);
        });
      }
    }
    add_to_output<lanes, rows>(call, t, range.n0, range.k0 == 0, sums);
  }

  template <int R = panel_rows>
  void tile(registers &none, int rows, int64_t t, const strip_range &range, const strip_range &next,
            const uint32_t *strip) const {
    if (rows == R) return dots<R>(t, range, next, strip);
    if constexpr (R > 1) tile<R - 1>(none, rows, t, range, next, strip);
  }
};

constexpr int64_t bfloat16_rows_min = 8;

}  // namespace

namespace avx512 {

void int8_weight_linear_bfloat16(const int8_weight_linear_call *call) {
  if (!call->bfloat16 || call->rows < bfloat16_rows_min) return int8_weight_linear(call);
  const bfloat16_dots product{*call, packed_weight<lanes>(*call, behind_activations(*call))};
  product.fill_panels();
  multiply_strips(product, call->rows, call->K, call->N);
}

}  // namespace avx512
