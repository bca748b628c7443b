// x · weightᵀ + bias with float weights.
#include "op.h"

namespace metashard::cuda {

namespace {

constexpr int64_t few_rows = 8, few_columns = 8;  // rows at most, and columns a block, of ms_linear_few
constexpr int64_t tile = 64;

ms_linear_call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", 2, f32_only);             // [tokens, K]
  const Operand weight = arguments.input(1, "weight", 2, any_float);  // [N, K]
  const Operand bias = arguments.optional(2, "bias", 1, any_float);   // [N]
  const Operand out = arguments.output(0, "out", 2, f32_only);        // [tokens, N]
  const int64_t N = weight.shape[0];
  arguments.unit_stride(x, "x");
  arguments.unit_stride(weight, "weight");
  arguments.shape(weight, "weight", {N, x.shape[1]});
  if (bias.present) {
    arguments.unit_stride(bias, "bias");
    arguments.shape(bias, "bias", {N});
  }
  arguments.shape(out, "out", {x.shape[0], N});
  return {.x = x.as<float>(), .weight = weight.data, .bias = bias.data, .out = out.as<float>(), .rows = x.shape[0],
          .K = x.shape[1], .N = N, .x_stride = x.stride[0], .weight_stride = weight.stride[0], .out_stride = out.stride[0],
          .weight_dtype = weight.dtype, .bias_dtype = bias.dtype};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const ms_linear_call call = read(arguments);
  if (call.rows == 0 || call.N == 0) return;
  if (call.rows <= few_rows) {
    launcher.launch(launcher.kernels.ms_linear_few, {ceil_div(call.N, few_columns)}, 256, call);
  } else {
    launcher.launch(launcher.kernels.ms_linear_tiles, {ceil_div(call.N, tile), ceil_div(call.rows, tile)}, 256, call);
  }
}

}  // namespace

const OpDefinition op_linear = {no_scratch<read>, run};

}  // namespace metashard::cuda
