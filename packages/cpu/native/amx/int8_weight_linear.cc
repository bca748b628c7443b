// int8_weight_linear by TDPBF16PS (bfloat16_tiles.h) where the call allows bfloat16; else, and few rows, by AVX512.
#include "avx512/entries.h"
#include "avx512/lanes.h"
#include "entries.h"

#include "bfloat16_tiles.h"
#include "tiles.h"

namespace amx {

void int8_weight_linear(const int8_weight_linear_call *call) {
  if (!call->bfloat16 || call->rows < bfloat16_tile_rows_min) avx512::int8_weight_linear(call);
  else int8_weight_linear_by_tiles<amx_tiles>(*call);
}

}  // namespace amx
