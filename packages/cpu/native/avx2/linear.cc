// linear with eight lanes; the loops are in linear_tiles.h.
// Floors: 1 row: one read of the weights; many rows: 2 · M · N · K / peak of the float32 multiply-add.
// Reached on 2 cores of a Zen 5: 1 row 0.80 to 0.88 of a plain read, 512 rows about 0.85 of
// the peak.
#include "linear_tiles.h"

#include "entries.h"
#include "lanes.h"

namespace avx2 {

void linear(const linear_call *call) { linear_by_lanes<lanes>(call); }

}  // namespace avx2
