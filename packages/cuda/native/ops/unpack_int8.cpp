// The packed layout of backend.h → strided int8 [N, K].
#include "op.h"

namespace metashard::cuda {

namespace {

ms_unpack_int8_call read(const Arguments &arguments) {
  const Operand packed = arguments.matrix(0, "packed");
  const Operand out = arguments.output_matrix(0, "CB", true, false);
  EXPECT(packed.packed, "unpack_int8: expected packed in the packed layout, got the strided one");
  arguments.same_shape(out, "CB", packed);
  return {.packed = packed.as<int8_t>(), .out = out.as<int8_t>(), .N = packed.shape[0], .K = packed.shape[1],
          .out_stride = out.stride[0]};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const ms_unpack_int8_call call = read(arguments);
  launcher.launch(launcher.kernels.ms_unpack_int8, {ceil_div(call.N, 16) * ceil_div(call.K, 64)}, 256, call);
}

}  // namespace

const OpDefinition op_unpack_int8 = {no_scratch<read>, run};

}  // namespace metashard::cuda
