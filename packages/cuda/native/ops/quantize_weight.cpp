// Row-wise absmax quantization of a weight into a strided or packed CB.
#include "op.h"

namespace metashard::cuda {

namespace {

struct Call {
  bool packed;
  ms_quantize_weight_call kernel;
};

Call read(const Arguments &arguments) {
  const Operand weight = arguments.input(0, "weight", 2, any_float);  // [N, K]
  const Operand CB = arguments.output_matrix(0, "CB", true, true);
  const Operand SCB = arguments.output(1, "SCB", 1, f32_only);
  arguments.unit_stride(weight, "weight");
  arguments.same_shape(CB, "CB", weight);
  arguments.shape(SCB, "SCB", {weight.shape[0]});
  return {CB.packed,
          {.weight = weight.data, .CB = CB.as<int8_t>(), .SCB = SCB.as<float>(), .N = weight.shape[0], .K = weight.shape[1],
           .weight_stride = weight.stride[0], .CB_stride = CB.stride[0], .weight_dtype = weight.dtype,
           .float16_first = arguments.attribute(0) != 0}};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const auto &[packed, call] = read(arguments);
  if (packed) {
    launcher.launch(launcher.kernels.ms_quantize_weight_blocks, {ceil_div(call.N, 16)}, 512, call);
  } else {
    launcher.launch(launcher.kernels.ms_quantize_weight_rows, {call.N}, 256, call);
  }
}

}  // namespace

const OpDefinition op_quantize_weight = {no_scratch<read>, run};

}  // namespace metashard::cuda
