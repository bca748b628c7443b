// x · (CB · SCB / 127)ᵀ + bias: int8 weights, activations in float. The product itself is a kernel (kernels.h).
#include "ops/matrix_calls.h"

namespace {

int8_weight_linear_call read(const op_arguments &arguments) {
  const operand x = arguments.input(0, "x", 2, f32_only);  // [tokens, K]
  const operand CB = arguments.matrix(1, "CB");            // [N, K]
  const operand SCB = arguments.input(2, "SCB", 1, f32_only);
  const operand bias = arguments.optional(3, "bias", 1, any_float);
  const operand out = arguments.output(0, "out", 2, f32_only);  // [tokens, N]
  const int64_t rows = x.shape[0], K = x.shape[1], N = CB.shape[0];
  arguments.unit_stride(x, "x");
  arguments.unit_stride(SCB, "SCB");
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
          .CB = CB.as<int8_t>(),
          .CB_stride = row_stride(CB),
          .SCB = SCB.as<float>(),
          .bias = bias.data,
          .out = out.as<float>(),
          .out_stride = row_stride(out),
          .packed = CB.packed,
          .bias_dtype = bias.dtype,
          .bfloat16 = arguments.attribute(0) != 0,
          .scratch = static_cast<uint8_t *>(arguments.scratch())};
}

// Activations as bfloat16 panels, and the weight packed on the fly where it comes strided (ops.ts).
size_t scratch(const op_arguments &arguments) {
  const int8_weight_linear_call call = read(arguments);
  const int64_t panels = round_up(call.rows, 48) * round_up(call.K, 64) * 2 + 4096;
  return size_t((call.bfloat16 ? panels : 0) + (call.packed ? 0 : round_up(packed_int8_bytes(call.N, call.K), 64)));
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const int8_weight_linear_call call = read(arguments);
  if (call.rows == 0 || call.N == 0) return;
  (call.K == 0 ? kernels_portable() : &isa.kernels)->int8_weight_linear(&call);
}

}  // namespace

const op_definition op_int8_weight_linear = {scratch, run};
