// What AVX512 F, BW, VL, DQ and VNNI bring over AVX2.
#include "entries.h"

void kernels_avx512(cpu_kernels *table) {
  table->linear = avx512::linear;
  table->int8_quantize = avx512::int8_quantize;
  table->int8_linear = avx512::int8_linear;
  table->int8_matmul = avx512::int8_matmul;
  table->int8_weight_linear = avx512::int8_weight_linear;
  table->quantize_weight = avx512::quantize_weight;
  table->pack_int8 = avx512::pack_int8;
  table->unpack_int8 = avx512::unpack_int8;
}

void kernels_avx512_bfloat16(cpu_kernels *table) {
  table->int8_weight_linear = avx512::int8_weight_linear_bfloat16;
  table->attention_bfloat16 = avx512::attention_bfloat16;
}
