// The same kernel over the plain twin of the tiles, for tests on processors without AMX.
#include "avx512/entries.h"
#include "avx512/lanes.h"
#include "entries.h"

#include "bfloat16_tiles.h"
#include "tiles.h"

namespace amx_emulated {

void int8_weight_linear(const int8_weight_linear_call *call) {
  if (!call->bfloat16 || call->rows < bfloat16_tile_rows_min) avx512::int8_weight_linear(call);
  else int8_weight_linear_by_tiles<plain_tiles>(*call);
}

}  // namespace amx_emulated
