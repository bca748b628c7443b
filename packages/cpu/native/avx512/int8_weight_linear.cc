// int8_weight_linear with sixteen lanes; the loops are in int8_weight_tiles.h.
#include "int8_weight_tiles.h"

#include "entries.h"
#include "lanes.h"

namespace avx512 {

void int8_weight_linear(const int8_weight_linear_call *call) { int8_weight_linear_by_lanes<lanes>(*call); }

}  // namespace avx512
