// What AMX-TILE and AMX-INT8 bring over AVX512-VNNI: prefill. Decode stays with VNNI (a tile of one row wastes 15 of its 16).
#include "entries.h"

void kernels_amx(cpu_kernels *table) {
  table->int8_linear = amx::int8_linear;
  table->int8_matmul = amx::int8_matmul;
}

void kernels_amx_emulated(cpu_kernels *table) {
  table->int8_linear = amx_emulated::int8_linear;
  table->int8_matmul = amx_emulated::int8_matmul;
  table->int8_weight_linear = amx_emulated::int8_weight_linear;
  table->attention_bfloat16 = amx_emulated::attention_bfloat16;
}

void kernels_amx_bfloat16(cpu_kernels *table) {
  table->int8_weight_linear = amx::int8_weight_linear;
  table->attention_bfloat16 = amx::attention_bfloat16;
}
