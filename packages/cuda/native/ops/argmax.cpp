// Index of the largest value of each row; the first of equals; NaN counts as largest.
#include "op.h"

namespace metashard::cuda {

namespace {

struct Call {
  int64_t rows;
  ms_argmax_call kernel;
};

Call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", 2, f32_only);
  const Operand out = arguments.output(0, "out", 1, i32_only);
  arguments.unit_stride(x, "x");
  arguments.shape(out, "out", {x.shape[0]});
  EXPECT(x.shape[1] > 0 || x.shape[0] == 0, "argmax: expected rows of at least 1 value, got 0");
  return {x.shape[0], {.x = x.as<float>(), .out = out.as<int32_t>(), .V = x.shape[1], .x_stride = x.stride[0]}};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const Call call = read(arguments);
  launcher.launch(launcher.kernels.ms_argmax, {call.rows}, 512, call.kernel);
}

}  // namespace

const OpDefinition op_argmax = {no_scratch<read>, run};

}  // namespace metashard::cuda
