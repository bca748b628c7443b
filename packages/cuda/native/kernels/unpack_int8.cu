// The packed layout → strided int8 [N, K]. A block takes a tile of 16 rows × 64 columns.
#include "calls.h"
#include "packed_int8.h"

extern "C" __global__ void __launch_bounds__(256) ms_unpack_int8(ms_unpack_int8_call call) {
  __shared__ Int8Tile tile;
  const int64_t n0 = blockIdx.x / tiles_of(call.K) * block_rows, k0 = blockIdx.x % tiles_of(call.K) * tile_columns;
  load_packed_tile(tile, call.packed, call.K, n0, k0);
  __syncthreads();
  each_of_tile(call.N, call.K, n0, k0,
               [&](int n, int k) { call.out[(n0 + n) * call.out_stride + k0 + k] = tile_byte(tile, n, k); });
}
