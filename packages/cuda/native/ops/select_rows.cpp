// Rows `rows[o]` of x.
#include "op.h"

namespace metashard::cuda {

namespace {

struct Call {
  int64_t outputs;
  ms_select_rows_call kernel;
};

Call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", 2, f32_only);  // [tokens, H]
  const Operand rows = arguments.input(1, "rows", 1, i32_only);
  const Operand out = arguments.output(0, "out", 2, f32_only);  // [outputs, H]
  arguments.unit_stride(x, "x");
  arguments.unit_stride(rows, "rows");
  arguments.shape(out, "out", {rows.shape[0], x.shape[1]});
  return {rows.shape[0],
          {.x = x.as<float>(), .rows = rows.as<int32_t>(), .out = out.as<float>(), .tokens = x.shape[0], .H = x.shape[1],
           .x_stride = x.stride[0], .out_stride = out.stride[0]}};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const Call call = read(arguments);
  if (call.kernel.H > 0) launcher.launch(launcher.kernels.ms_select_rows, {call.outputs}, 256, call.kernel);
}

}  // namespace

const OpDefinition op_select_rows = {no_scratch<read>, run};

}  // namespace metashard::cuda
