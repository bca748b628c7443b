// The vector ops built for AVX2, FMA and F16C (8 lanes).
#include "isa/vector_ops.inc"

const vector_ops vector_ops_avx2 = VECTOR_OPS_TABLE;
