// cos and sin of positions · inverse frequencies.
#include "op.h"

namespace metashard::cuda {

namespace {

ms_rope_table_call read(const Arguments &arguments) {
  const Operand positions = arguments.input(0, "positions", 1, i32_only);
  const Operand inverse_frequencies = arguments.input(1, "inverse_frequencies", 1, f32_only);
  const Operand cos = arguments.output(0, "cos", 2, f32_only);  // [tokens, R/2]
  const Operand sin = arguments.output(1, "sin", 2, f32_only);
  arguments.unit_stride(positions, "positions");
  arguments.unit_stride(inverse_frequencies, "inverse_frequencies");
  arguments.shape(cos, "cos", {positions.shape[0], inverse_frequencies.shape[0]});
  arguments.same_shape(sin, "sin", cos);
  return {.positions = positions.as<int32_t>(), .inverse_frequencies = inverse_frequencies.as<float>(),
          .cos = cos.as<float>(), .sin = sin.as<float>(), .tokens = cos.shape[0], .half = cos.shape[1],
          .cos_stride = cos.stride[0], .sin_stride = sin.stride[0], .scaling = arguments.attribute(0)};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const ms_rope_table_call call = read(arguments);
  launcher.launch(launcher.kernels.ms_rope_table, {ceil_div(call.tokens * call.half, 256)}, 256, call);
}

}  // namespace

const OpDefinition op_rope_table = {no_scratch<read>, run};

}  // namespace metashard::cuda
