// CB · SCB / 127 as float32: the product in float64, rounded once. A block takes a tile of 16 rows × 64 columns.
#include "calls.h"
#include "packed_int8.h"

extern "C" __global__ void __launch_bounds__(256) ms_dequantize_weight(ms_dequantize_weight_call call) {
  __shared__ Int8Tile tile;
  const int64_t n0 = blockIdx.x / tiles_of(call.K) * block_rows, k0 = blockIdx.x % tiles_of(call.K) * tile_columns;
  if (call.packed) load_packed_tile(tile, call.CB, call.K, n0, k0);
  __syncthreads();
  each_of_tile(call.N, call.K, n0, k0, [&](int n, int k) {
    const int8_t CB = call.packed ? tile_byte(tile, n, k) : call.CB[(n0 + n) * call.CB_stride + k0 + k];
    const double product = static_cast<double>(CB) * static_cast<double>(call.SCB[n0 + n]);
    call.weight[(n0 + n) * call.weight_stride + k0 + k] = static_cast<float>(product / 127.0);
  });
}
