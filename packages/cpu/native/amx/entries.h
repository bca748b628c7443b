// The kernels of this level, on the processor's tiles and on their plain twin. Few rows go to the AVX512 kernels.
#pragma once
#include "kernels.h"

namespace amx {

void int8_linear(const int8_linear_call *call);
void int8_matmul(const int8_matmul_call *call);
void int8_weight_linear(const int8_weight_linear_call *call);
void attention_bfloat16(const attention_tile *tile);

}  // namespace amx

namespace amx_emulated {

void int8_linear(const int8_linear_call *call);
void int8_matmul(const int8_matmul_call *call);
void int8_weight_linear(const int8_weight_linear_call *call);
void attention_bfloat16(const attention_tile *tile);

}  // namespace amx_emulated

// For tests: the AMX kernels with tiles in plain C++, over a table filled by kernels_avx512. Needs what that level needs,
// not AMX.
void kernels_amx_emulated(cpu_kernels *table);
