// x · (CB · SCB / 127)ᵀ + bias: int8 weights, activations in float32. The attribute bfloat16 allows less than float32, which is
// not used.
#include "int8_product.h"

namespace metashard::cuda {

namespace {

struct Call {
  Operand CB;
  ms_int8_weight_linear_call kernel;  // but for its CB
};

Call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", 2, f32_only);  // [tokens, K]
  const Operand CB = arguments.matrix(1, "CB");            // [N, K]
  const Operand SCB = arguments.input(2, "SCB", 1, f32_only);
  const Operand bias = arguments.optional(3, "bias", 1, any_float);
  const Operand out = arguments.output(0, "out", 2, f32_only);  // [tokens, N]
  const int64_t N = CB.shape[0];
  arguments.unit_stride(x, "x");
  arguments.unit_stride(SCB, "SCB");
  arguments.shape(CB, "CB", {N, x.shape[1]});
  arguments.shape(SCB, "SCB", {N});
  if (bias.present) {
    arguments.unit_stride(bias, "bias");
    arguments.shape(bias, "bias", {N});
  }
  arguments.shape(out, "out", {x.shape[0], N});
  return {CB,
          {.x = x.as<float>(), .CB = nullptr, .SCB = SCB.as<float>(), .bias = bias.data, .out = out.as<float>(),
           .rows = x.shape[0], .K = x.shape[1], .N = N, .x_stride = x.stride[0], .out_stride = out.stride[0],
           .bias_dtype = bias.dtype}};
}

size_t scratch(const Arguments &arguments) { return packed_scratch(read(arguments).CB); }

void run(const Arguments &arguments, const Launcher &launcher) {
  auto [CB, call] = read(arguments);
  if (call.rows == 0 || call.N == 0) return;
  call.CB = packed_form(CB, arguments.scratch(), launcher);
  if (call.rows <= 8) {
    launcher.launch(launcher.kernels.ms_int8_weight_linear_few, {ceil_div(call.N, 16)}, 256, call);
  } else {
    launcher.launch(launcher.kernels.ms_int8_weight_linear_tiles, {ceil_div(call.N, 64), ceil_div(call.rows, 64)}, 256, call);
  }
}

}  // namespace

const OpDefinition op_int8_weight_linear = {scratch, run};

}  // namespace metashard::cuda
