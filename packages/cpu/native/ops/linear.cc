// x · weightᵀ + bias with float weights. The product itself is a kernel (kernels.h).
#include "ops/matrix_calls.h"

namespace {

linear_call read(const op_arguments &arguments) {
  const operand x = arguments.input(0, "x", 2, f32_only);             // [tokens, K]
  const operand weight = arguments.input(1, "weight", 2, any_float);  // [N, K]
  const operand bias = arguments.optional(2, "bias", 1, any_float);   // [N]
  const operand out = arguments.output(0, "out", 2, f32_only);        // [tokens, N]
  const int64_t N = weight.shape[0];
  arguments.unit_stride(x, "x");
  arguments.unit_stride(weight, "weight");
  arguments.shape(weight, "weight", {N, x.shape[1]});
  if (bias.present) {
    arguments.unit_stride(bias, "bias");
    arguments.shape(bias, "bias", {N});
  }
  arguments.shape(out, "out", {x.shape[0], N});
  return {.rows = x.shape[0],
          .K = x.shape[1],
          .N = N,
          .x = x.as<float>(),
          .x_stride = row_stride(x),
          .weight = weight.data,
          .weight_stride = row_stride(weight),
          .bias = bias.data,
          .out = out.as<float>(),
          .out_stride = row_stride(out),
          .weight_dtype = weight.dtype,
          .bias_dtype = bias.dtype};
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const linear_call call = read(arguments);
  if (call.rows == 0 || call.N == 0) return;
  (call.K == 0 ? kernels_portable() : &isa.kernels)->linear(&call);
}

}  // namespace

const op_definition op_linear = {scratch, run};
