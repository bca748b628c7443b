// int8_quantize with sixteen lanes; the loops are in quantize_rows.h. Floor: one read of x; the second pass and CA stay in the cache.
#include "entries.h"
#include "lanes.h"
#include "quantize_rows.h"

namespace avx512 {

void int8_quantize(const int8_quantize_call *call) { quantize_rows<lanes>(call); }

}  // namespace avx512
