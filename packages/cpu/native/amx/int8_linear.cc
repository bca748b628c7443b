// int8_linear and int8_matmul by TDPBSSD (int8_tiles.h).
#include "avx512/entries.h"
#include "avx512/lanes.h"
#include "entries.h"
#include "int8_tiles.h"
#include "tiles.h"

namespace amx {

void int8_linear(const int8_linear_call *call) {
  if (call->rows < tiled_rows_min) avx512::int8_linear(call);
  else multiply_linear_tiled<amx_tiles, lanes>(*call);
}

void int8_matmul(const int8_matmul_call *call) {
  if (call->rows < tiled_rows_min) avx512::int8_matmul(call);
  else multiply_int8_tiled<amx_tiles, lanes>(*call);
}

}  // namespace amx
