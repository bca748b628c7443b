// Strided int8 [N, K] → the packed layout. A block takes 16 rows.
#include "calls.h"
#include "packed_int8.h"

extern "C" __global__ void __launch_bounds__(256) ms_pack_int8(ms_pack_int8_call call) {
  write_packed_block(call.packed, call.N, call.K, static_cast<int64_t>(blockIdx.x) * block_rows,
                     [&](int64_t n, int64_t k) { return call.source[n * call.source_stride + k]; });
}
