// The kernels of this level, one file each, for table.cc.
#pragma once
#include "kernels.h"

namespace avx512 {

void linear(const linear_call *call);
void int8_quantize(const int8_quantize_call *call);
void int8_linear(const int8_linear_call *call);
void int8_matmul(const int8_matmul_call *call);
void int8_weight_linear(const int8_weight_linear_call *call);
void int8_weight_linear_bfloat16(const int8_weight_linear_call *call);
void attention_bfloat16(const attention_tile *tile);
void quantize_weight(const quantize_weight_call *call);
void pack_int8(const pack_int8_call *call);
void unpack_int8(const pack_int8_call *call);

}  // namespace avx512
