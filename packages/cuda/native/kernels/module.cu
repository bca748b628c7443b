// All kernels as one translation unit, held against kernel_list.def: a definition that differs from its line there does not
// compile.

#include "../simt/simt.h"
#include "calls.h"

#define MS_KERNEL(name, parameters) extern "C" __global__ void name parameters;
#include "kernel_list.def"
#undef MS_KERNEL

#include "activation.cu"
#include "add.cu"
#include "argmax.cu"
#include "attention.cu"
#include "cast.cu"
#include "copy.cu"
#include "dequantize_weight.cu"
#include "embedding.cu"
#include "int8_embedding.cu"
#include "int8_linear.cu"
#include "int8_matmul.cu"
#include "int8_quantize.cu"
#include "int8_weight_linear.cu"
#include "layer_norm.cu"
#include "linear.cu"
#include "mul.cu"
#include "pack_int8.cu"
#include "quantize_weight.cu"
#include "rms_norm.cu"
#include "rope.cu"
#include "rope_table.cu"
#include "sample.cu"
#include "select_rows.cu"
#include "unpack_int8.cu"
