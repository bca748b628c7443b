// Rows of a table, as float32.
#include "op.h"

namespace metashard::cuda {

namespace {

struct Call {
  int64_t tokens;
  ms_embedding_call kernel;
};

Call read(const Arguments &arguments) {
  const Operand ids = arguments.input(0, "ids", 1, i32_only);
  const Operand table = arguments.input(1, "table", 2, any_float);  // [V, H]
  const Operand out = arguments.output(0, "out", 2, f32_only);      // [tokens, H]
  arguments.unit_stride(ids, "ids");
  arguments.unit_stride(table, "table");
  arguments.shape(out, "out", {ids.shape[0], table.shape[1]});
  return {ids.shape[0],
          {.ids = ids.as<int32_t>(), .table = table.data, .out = out.as<float>(), .V = table.shape[0], .H = table.shape[1],
           .table_stride = table.stride[0], .out_stride = out.stride[0], .table_dtype = table.dtype}};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const Call call = read(arguments);
  if (call.kernel.H > 0) launcher.launch(launcher.kernels.ms_embedding, {call.tokens}, 256, call.kernel);
}

}  // namespace

const OpDefinition op_embedding = {no_scratch<read>, run};

}  // namespace metashard::cuda
