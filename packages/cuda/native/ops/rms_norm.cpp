// x / sqrt(mean(x²) + epsilon) · weight over rows of H.
#include "op.h"

namespace metashard::cuda {

namespace {

struct Call {
  int64_t rows;
  ms_rms_norm_call kernel;
};

Call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", 2, f32_only);  // [tokens, H]
  const Operand weight = arguments.input(1, "weight", 1, any_float);
  const Operand out = arguments.output(0, "out", 2, f32_only);
  arguments.unit_stride(x, "x");
  arguments.unit_stride(weight, "weight");
  arguments.shape(weight, "weight", {x.shape[1]});
  arguments.same_shape(out, "out", x);
  return {x.shape[0],
          {.x = x.as<float>(), .weight = weight.data, .out = out.as<float>(), .H = x.shape[1], .x_stride = x.stride[0],
           .out_stride = out.stride[0], .epsilon = arguments.attribute(0), .weight_dtype = weight.dtype}};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const Call call = read(arguments);
  if (call.kernel.H > 0) launcher.launch(launcher.kernels.ms_rms_norm, {call.rows}, 256, call.kernel);
}

}  // namespace

const OpDefinition op_rms_norm = {no_scratch<read>, run};

}  // namespace metashard::cuda
