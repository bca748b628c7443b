// pack_int8 and unpack_int8 with sixteen lanes: 16 × 16 dwords transposed in registers (packed_blocks.h). Floor: one read
// and one write. Reached on 2 cores of a Zen 5: 12 GB/s of int8 packed, 13 unpacked.
#include "entries.h"
#include "lanes.h"
#include "packed_blocks.h"

namespace avx512 {

void pack_int8(const pack_int8_call *call) {
  pack_matrix<lanes>(call->source, call->stride, call->N, call->K, call->destination);
}

void unpack_int8(const pack_int8_call *call) {
  unpack_matrix<lanes>(call->source, call->N, call->K, call->destination, call->stride);
}

}  // namespace avx512
