// linear with sixteen lanes; the loops are in linear_tiles.h.
// Floors: 1 row: one read of the weights; many rows: 2 · M · N · K / peak of the float32 multiply-add.
// Reached on 2 cores of a Zen 5: 1 row 0.95 to 1.0 of a plain read (any dtype), 8 rows 0.78 to 0.88, 512 rows 0.82 of the
// peak, 32 rows 0.65 to 0.75.
#include "linear_tiles.h"

#include "entries.h"
#include "lanes.h"

namespace avx512 {

void linear(const linear_call *call) { linear_by_lanes<lanes>(call); }

}  // namespace avx512
