// quantize_weight with sixteen lanes, straight into packed blocks or into rows; the loops are in quantize_rows.h. Floor:
// one read of the weights and one write of CB. Reached on 2 cores of a Zen 5: 11 GB/s of float16 and 15 of float32 packed.
#include "entries.h"
#include "lanes.h"
#include "quantize_rows.h"

namespace avx512 {

void quantize_weight(const quantize_weight_call *call) { quantize_weight_rows<lanes>(call); }

}  // namespace avx512
