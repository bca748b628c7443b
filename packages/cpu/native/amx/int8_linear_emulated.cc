// The same kernels over the plain twin of the tiles, for tests on processors without AMX.
#include "avx512/entries.h"
#include "avx512/lanes.h"
#include "entries.h"
#include "int8_tiles.h"
#include "tiles.h"

namespace amx_emulated {

void int8_linear(const int8_linear_call *call) {
  if (call->rows < tiled_rows_min) avx512::int8_linear(call);
  else multiply_linear_tiled<plain_tiles, lanes>(*call);
}

void int8_matmul(const int8_matmul_call *call) {
  if (call->rows < tiled_rows_min) avx512::int8_matmul(call);
  else multiply_int8_tiled<plain_tiles, lanes>(*call);
}

}  // namespace amx_emulated
