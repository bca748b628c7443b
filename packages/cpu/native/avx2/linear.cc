// linear with eight lanes; the loops are in linear_tiles.h.
// Floors: 1 row: one read of the weights; 512 rows: 2 · M · N · K / peak of the float32 multiply-add.
#include "linear_tiles.h"

#include "entries.h"
#include "lanes.h"

namespace avx2 {

void linear(const linear_call *call) { linear_by_lanes<lanes>(call); }

}  // namespace avx2
