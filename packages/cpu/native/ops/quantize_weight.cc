// Row-wise absmax quantization of a weight into a strided or packed CB.
#include "ops/matrix_calls.h"

namespace {

quantize_weight_call read(const op_arguments &arguments) {
  const operand weight = arguments.input(0, "weight", 2, any_float);  // [N, K]
  const operand CB = arguments.output_matrix(0, "CB", true, true);
  const operand SCB = arguments.output(1, "SCB", 1, f32_only);
  arguments.unit_stride(weight, "weight");
  arguments.same_shape(CB, "CB", weight);
  arguments.shape(SCB, "SCB", {weight.shape[0]});
  return {.N = weight.shape[0],
          .K = weight.shape[1],
          .weight = weight.data,
          .weight_stride = row_stride(weight),
          .CB = CB.as<int8_t>(),
          .CB_stride = row_stride(CB),
          .SCB = SCB.as<float>(),
          .weight_dtype = weight.dtype,
          .packed = CB.packed,
          .float16_first = arguments.attribute(0) != 0};
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const quantize_weight_call call = read(arguments);
  if (call.N == 0) return;
  (call.K == 0 ? kernels_portable() : &isa.kernels)->quantize_weight(&call);
}

}  // namespace

const op_definition op_quantize_weight = {scratch, run};
