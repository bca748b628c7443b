// The vector ops built for AVX512 F, BW, VL, DQ (16 lanes).
#include "isa/vector_ops.inc"

const vector_ops vector_ops_avx512 = VECTOR_OPS_TABLE;
