// x · (CB · SCB / 127)ᵀ + bias: int8 weights, activations in float32, the sum over x · CB in float32, the rest in float64 with
// one rounding. Few rows (decode): a block takes the 16 columns of a packed block, 16 threads side by side, 16 such groups
// along K. Many rows: a block takes 64 × 64 outputs through shared memory.
#include "float_tiles.h"
#include "float_types.h"
#include "packed_int8.h"

namespace {

constexpr int few_weight_rows = 8, weight_slices = 16;

// CB · 2^-7, so that the products with huge x stay finite; store_output makes up for it.
SIMT_DEVICE float small_byte(int32_t word, int i) {
  return static_cast<float>(static_cast<int8_t>(static_cast<uint32_t>(word) >> 8 * i)) * 0.0078125f;
}

SIMT_DEVICE void store_output(const ms_int8_weight_linear_call &call, int64_t t, int64_t n, float sum) {
  double result = static_cast<double>(sum) * static_cast<double>(call.SCB[n]) * (128.0 / 127.0);
  if (call.bias != nullptr) result += static_cast<double>(load_float(call.bias, call.bias_dtype, n));
  call.out[t * call.out_stride + n] = static_cast<float>(result);
}

// Up to ROWS (and at least 1) rows, by 256 threads. Rows past the last repeat it.
template <int ROWS>
SIMT_DEVICE void weight_columns_of_few(const ms_int8_weight_linear_call &call,
                                       float (&sums)[weight_slices][few_weight_rows][block_rows]) {
  const int n = threadIdx.x % block_rows, slice = threadIdx.x / block_rows;
  const int64_t n0 = static_cast<int64_t>(blockIdx.x) * block_rows;
  const int32_t *CB = block_words(call.CB, call.K, n0);
  float sum[ROWS] = {};
  for (int64_t line = slice; line * 4 < call.K; line += weight_slices) {
    const int32_t word = CB[line * block_rows + n];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t k = line * 4 + i;
      if (k >= call.K) break;
      const float weight = small_byte(word, i);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const int64_t t = min(int64_t{r}, call.rows - 1);
        sum[r] = ms_fma(call.x[t * call.x_stride + k], weight, sum[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) sums[slice][r][n] = sum[r];
  __syncthreads();
  const int r = threadIdx.x / block_rows;
  if (r >= call.rows || n0 + n >= call.N) return;
  float total = 0.0f;
  for (int s = 0; s < weight_slices; s++) total += sums[s][r][n];
  store_output(call, r, n0 + n, total);
}

// 64 rows of CB (four packed blocks), columns k0 … k0 + depth - 1; zeros where there are none, as in the layout itself.
SIMT_DEVICE void load_weight_tile(const ms_int8_weight_linear_call &call, int64_t n0, int64_t k0, FloatTiles &tiles) {
#pragma unroll
  for (int i = 0; i < tile * depth / 4 / 256; i++) {
    const int index = threadIdx.x + i * 256, n = index % block_rows, line = index / block_rows % (depth / 4);
    const int block = index / (block_rows * depth / 4) * block_rows;
    const bool exists = n0 + block < call.N;
    const int32_t word = exists ? block_words(call.CB, call.K, n0 + block)[(k0 / 4 + line) * block_rows + n] : 0;
    for (int j = 0; j < 4; j++) tiles.weight[line * 4 + j][block + n] = small_byte(word, j);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) ms_int8_weight_linear_few(ms_int8_weight_linear_call call) {
  __shared__ float sums[weight_slices][few_weight_rows][block_rows];
  if (call.rows == 1) return weight_columns_of_few<1>(call, sums);
  if (call.rows <= 4) return weight_columns_of_few<4>(call, sums);
  weight_columns_of_few<few_weight_rows>(call, sums);
}

extern "C" __global__ void __launch_bounds__(256) ms_int8_weight_linear_tiles(ms_int8_weight_linear_call call) {
  __shared__ FloatTiles shared;
  FloatTiles &tiles = shared;
  multiply_float_tiles(
      call.x, call.x_stride, call.rows, call.K, call.N, tiles,
      [&](int64_t n0, int64_t k0) { load_weight_tile(call, n0, k0, tiles); },
      [&](int64_t t, int64_t n, float sum) { store_output(call, t, n, sum); });
}
