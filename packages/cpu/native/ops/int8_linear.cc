// The LLM.int8() product: int8 part, outlier part and bias in one pass with one rounding. The product itself is a kernel
// (kernels.h).
#include "ops/matrix_calls.h"

namespace {

constexpr int64_t longest_K = 133144;  // 127 · 127 · K stays below 2³¹

int8_linear_call read(const op_arguments &arguments) {
  const operand x = arguments.input(0, "x", 2, f32_only);   // [tokens, K]
  const operand CA = arguments.input(1, "CA", 2, i8_only);  // [tokens, K]
  const operand SCA = arguments.input(2, "SCA", 1, f32_only);
  const operand outlier_cols = arguments.input(3, "outlier_cols", 1, i32_only);  // [K + 1]
  const operand CB = arguments.matrix(4, "CB");                                  // [N, K]
  const operand SCB = arguments.input(5, "SCB", 1, f32_only);
  const operand bias = arguments.optional(6, "bias", 1, any_float);
  const operand out = arguments.output(0, "out", 2, f32_only);  // [tokens, N]
  const int64_t rows = x.shape[0], K = x.shape[1], N = CB.shape[0];
  EXPECT(K <= longest_K, "int8_linear: expected K up to %lld, got %lld", (long long)longest_K, (long long)K);
  for (const operand *tensor : {&x, &CA, &SCA, &outlier_cols, &SCB}) arguments.unit_stride(*tensor, "every input");
  arguments.shape(CA, "CA", {rows, K});
  arguments.shape(SCA, "SCA", {rows});
  arguments.shape(outlier_cols, "outlier_cols", {K + 1});
  arguments.shape(CB, "CB", {N, K});
  arguments.shape(SCB, "SCB", {N});
  if (bias.present) {
    arguments.unit_stride(bias, "bias");
    arguments.shape(bias, "bias", {N});
  }
  arguments.shape(out, "out", {rows, N});
  return {.rows = rows,
          .K = K,
          .N = N,
          .x = x.as<float>(),
          .x_stride = row_stride(x),
          .CA = CA.as<int8_t>(),
          .CA_stride = row_stride(CA),
          .SCA = SCA.as<float>(),
          .outlier_cols = outlier_cols.as<int32_t>(),
          .CB = CB.as<int8_t>(),
          .CB_stride = row_stride(CB),
          .SCB = SCB.as<float>(),
          .bias = bias.data,
          .out = out.as<float>(),
          .out_stride = row_stride(out),
          .packed = CB.packed,
          .bias_dtype = bias.dtype,
          .threshold = arguments.threshold(0),
          .per_row = arguments.attribute(1) != 0,
          .scratch = static_cast<uint8_t *>(arguments.scratch())};
}

size_t scratch(const op_arguments &arguments) {
  const int8_linear_call call = read(arguments);
  return int8_product_scratch(call.rows, call.K, call.N, call.packed != 0);
}

void check_columns(const int8_linear_call &call) {
  const int32_t count = call.outlier_cols[0];
  EXPECT(count >= 0 && count <= call.K, "int8_linear: expected outlier_cols to start with a count from 0 to %lld, got %d",
         (long long)call.K, count);
  for (int32_t i = 1; i <= count; i++) {
    EXPECT(call.outlier_cols[i] >= 0 && call.outlier_cols[i] < call.K,
           "int8_linear: expected columns from 0 to %lld in outlier_cols, got %d", (long long)(call.K - 1),
           call.outlier_cols[i]);
  }
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const int8_linear_call call = read(arguments);
  if (call.rows == 0 || call.N == 0) return;
  check_columns(call);
  (call.K == 0 ? kernels_portable() : &isa.kernels)->int8_linear(&call);
}

}  // namespace

const op_definition op_int8_linear = {scratch, run};
