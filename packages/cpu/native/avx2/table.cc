// What AVX2, FMA and F16C bring over the portable kernels.
#include "entries.h"

void kernels_avx2(cpu_kernels *table) {
  table->linear = avx2::linear;
  table->int8_quantize = avx2::int8_quantize;
  table->int8_linear = avx2::int8_linear;
  table->int8_matmul = avx2::int8_matmul;
  table->int8_weight_linear = avx2::int8_weight_linear;
  table->quantize_weight = avx2::quantize_weight;
  table->pack_int8 = avx2::pack_int8;
  table->unpack_int8 = avx2::unpack_int8;
}
