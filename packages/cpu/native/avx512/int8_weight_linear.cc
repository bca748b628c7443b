// int8_weight_linear in float32 with sixteen lanes; the loops are in int8_weight_tiles.h. Floors: 1 row: one read of the
// weights; many rows: 2 · M · N · K / peak of the float32 multiply-add. Reached on a Zen 5 at 4096 × 4096: 1 row 0.93
// to 0.97 of a plain read (1 core), 0.86 or more (2 cores); 6 to 23 rows 0.8 to 0.87 and 512 rows 0.84 to 0.87 of the peak.
#include "int8_weight_tiles.h"

#include "entries.h"
#include "lanes.h"

namespace avx512 {

void int8_weight_linear(const int8_weight_linear_call *call) { int8_weight_linear_by_lanes<lanes>(*call); }

}  // namespace avx512
