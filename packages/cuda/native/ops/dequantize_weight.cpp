// CB · SCB / 127 as float32.
#include "op.h"

namespace metashard::cuda {

namespace {

ms_dequantize_weight_call read(const Arguments &arguments) {
  const Operand CB = arguments.matrix(0, "CB");  // [N, K]
  const Operand SCB = arguments.input(1, "SCB", 1, f32_only);
  const Operand weight = arguments.output(0, "weight", 2, f32_only);
  arguments.unit_stride(SCB, "SCB");
  arguments.shape(SCB, "SCB", {CB.shape[0]});
  arguments.same_shape(weight, "weight", CB);
  return {.CB = CB.as<int8_t>(), .SCB = SCB.as<float>(), .weight = weight.as<float>(), .N = CB.shape[0], .K = CB.shape[1],
          .CB_stride = CB.stride[0], .weight_stride = weight.stride[0], .packed = CB.packed};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const ms_dequantize_weight_call call = read(arguments);
  launcher.launch(launcher.kernels.ms_dequantize_weight, {ceil_div(call.N, 16) * ceil_div(call.K, 64)}, 256, call);
}

}  // namespace

const OpDefinition op_dequantize_weight = {no_scratch<read>, run};

}  // namespace metashard::cuda
