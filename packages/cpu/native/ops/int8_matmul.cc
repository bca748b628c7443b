// CA · CBᵀ, exact in int32. The product itself is a kernel (kernels.h).
#include "ops/matrix_calls.h"

namespace {

constexpr int64_t longest_K = 133144;  // 127 · 127 · K stays below 2³¹

int8_matmul_call read(const op_arguments &arguments) {
  const operand CA = arguments.input(0, "CA", 2, i8_only);  // [M, K]
  const operand CB = arguments.matrix(1, "CB");             // [N, K]
  const operand out = arguments.output(0, "accumulators", 2, i32_only);
  const int64_t rows = CA.shape[0], K = CA.shape[1], N = CB.shape[0];
  EXPECT(K <= longest_K, "int8_matmul: expected K up to %lld, got %lld", (long long)longest_K, (long long)K);
  arguments.unit_stride(CA, "CA");
  arguments.shape(CB, "CB", {N, K});
  arguments.shape(out, "accumulators", {rows, N});
  return {.rows = rows,
          .K = K,
          .N = N,
          .CA = CA.as<int8_t>(),
          .CA_stride = row_stride(CA),
          .CB = CB.as<int8_t>(),
          .CB_stride = row_stride(CB),
          .out = out.as<int32_t>(),
          .out_stride = row_stride(out),
          .packed = CB.packed,
          .scratch = static_cast<uint8_t *>(arguments.scratch())};
}

size_t scratch(const op_arguments &arguments) {
  const int8_matmul_call call = read(arguments);
  return int8_product_scratch(call.rows, call.K, call.N, call.packed != 0);
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const int8_matmul_call call = read(arguments);
  if (call.rows == 0 || call.N == 0) return;
  (call.K == 0 ? kernels_portable() : &isa.kernels)->int8_matmul(&call);
}

}  // namespace

const op_definition op_int8_matmul = {scratch, run};
