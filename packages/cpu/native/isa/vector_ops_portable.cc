// The vector ops built for the baseline of the architecture (4 lanes: SSE2, NEON).
#include "isa/vector_ops.inc"

const vector_ops vector_ops_portable = VECTOR_OPS_TABLE;
