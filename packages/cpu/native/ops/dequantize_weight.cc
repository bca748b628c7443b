// CB · SCB / 127 as float32.
#include "ops/matrix_calls.h"

namespace {

dequantize_weight_call read(const op_arguments &arguments) {
  const operand CB = arguments.matrix(0, "CB");  // [N, K]
  const operand SCB = arguments.input(1, "SCB", 1, f32_only);
  const operand weight = arguments.output(0, "weight", 2, f32_only);
  arguments.unit_stride(SCB, "SCB");
  arguments.shape(SCB, "SCB", {CB.shape[0]});
  arguments.same_shape(weight, "weight", CB);
  return {.N = CB.shape[0],
          .K = CB.shape[1],
          .CB = CB.as<int8_t>(),
          .CB_stride = row_stride(CB),
          .SCB = SCB.as<float>(),
          .weight = weight.as<float>(),
          .weight_stride = row_stride(weight),
          .packed = CB.packed};
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const dequantize_weight_call call = read(arguments);
  if (call.N > 0 && call.K > 0) isa.kernels.dequantize_weight(&call);
}

}  // namespace

const op_definition op_dequantize_weight = {scratch, run};
