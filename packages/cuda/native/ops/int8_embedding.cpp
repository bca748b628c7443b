// Rows of an int8 table, as float32.
#include "op.h"

namespace metashard::cuda {

namespace {

struct Call {
  int64_t tokens;
  ms_int8_embedding_call kernel;
};

Call read(const Arguments &arguments) {
  const Operand ids = arguments.input(0, "ids", 1, i32_only);
  const Operand CB = arguments.matrix(1, "CB");  // [V, H]
  const Operand SCB = arguments.input(2, "SCB", 1, f32_only);
  const Operand out = arguments.output(0, "out", 2, f32_only);  // [tokens, H]
  arguments.unit_stride(ids, "ids");
  arguments.unit_stride(SCB, "SCB");
  arguments.shape(SCB, "SCB", {CB.shape[0]});
  arguments.shape(out, "out", {ids.shape[0], CB.shape[1]});
  return {ids.shape[0],
          {.ids = ids.as<int32_t>(), .CB = CB.as<int8_t>(), .SCB = SCB.as<float>(), .out = out.as<float>(), .V = CB.shape[0],
           .H = CB.shape[1], .CB_stride = CB.stride[0], .out_stride = out.stride[0], .packed = CB.packed}};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const Call call = read(arguments);
  if (call.kernel.H > 0) launcher.launch(launcher.kernels.ms_int8_embedding, {call.tokens}, 256, call.kernel);
}

}  // namespace

const OpDefinition op_int8_embedding = {no_scratch<read>, run};

}  // namespace metashard::cuda
