// The plain kernels: what every processor has, and the oracle of the tuned ones.
#include "portable/rows.h"

const cpu_kernels *kernels_portable() {
  static const cpu_kernels table = {portable_linear,      portable_int8_quantize,     portable_int8_linear,
                                    portable_int8_matmul, portable_quantize_weight,   portable_pack_int8,
                                    portable_unpack_int8, portable_dequantize_weight, portable_int8_weight_linear,
                                    nullptr};
  return &table;
}
