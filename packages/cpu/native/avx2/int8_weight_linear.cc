// int8_weight_linear with eight lanes; the loops are in int8_weight_tiles.h. Reached on a Zen 5 at 4096 × 4096: 1 row 0.80 of
// a plain read (1 core); 512 rows 0.9 of the peak of the 256-bit multiply-add.
#include "int8_weight_tiles.h"

#include "entries.h"
#include "lanes.h"

namespace avx2 {

void int8_weight_linear(const int8_weight_linear_call *call) { int8_weight_linear_by_lanes<lanes>(*call); }

}  // namespace avx2
