// LLM.int8() row quantization of activations with its outlier columns (Dettmers et al. 2022, arXiv 2208.07339, section 3).
#include "ops/matrix_calls.h"

namespace {

int8_quantize_call read(const op_arguments &arguments) {
  const operand x = arguments.input(0, "x", 2, f32_only);  // [tokens, K]
  const operand CA = arguments.output(0, "CA", 2, i8_only);
  const operand SCA = arguments.output(1, "SCA", 1, f32_only);
  const operand outlier_cols = arguments.output(2, "outlier_cols", 1, i32_only);
  arguments.unit_stride(x, "x");
  arguments.same_shape(CA, "CA", x);
  arguments.shape(SCA, "SCA", {x.shape[0]});
  arguments.shape(outlier_cols, "outlier_cols", {x.shape[1] + 1});
  return {.rows = x.shape[0],
          .K = x.shape[1],
          .x = x.as<float>(),
          .x_stride = row_stride(x),
          .CA = CA.as<int8_t>(),
          .CA_stride = row_stride(CA),
          .SCA = SCA.as<float>(),
          .outlier_cols = outlier_cols.as<int32_t>(),
          .threshold = arguments.threshold(0),
          .per_row = arguments.attribute(1) != 0,
          .scratch = static_cast<uint8_t *>(arguments.scratch())};
}

size_t scratch(const op_arguments &arguments) { return size_t(round_up(read(arguments).K, 64) + 64); }

void run(const op_arguments &arguments, const isa_tables &isa) {
  const int8_quantize_call call = read(arguments);
  call.outlier_cols[0] = 0;
  if (call.rows == 0) return;
  (call.K == 0 ? kernels_portable() : &isa.kernels)->int8_quantize(&call);
}

}  // namespace

const op_definition op_int8_quantize = {scratch, run};
