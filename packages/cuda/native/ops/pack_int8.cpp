// Strided int8 [N, K] → the packed layout of backend.h.
#include "op.h"

namespace metashard::cuda {

namespace {

ms_pack_int8_call read(const Arguments &arguments) {
  const Operand source = arguments.input(0, "CB", 2, i8_only);
  const Operand packed = arguments.output_matrix(0, "packed", false, true);
  arguments.unit_stride(source, "CB");
  arguments.same_shape(packed, "packed", source);
  return {.source = source.as<int8_t>(), .packed = packed.as<int8_t>(), .N = source.shape[0], .K = source.shape[1],
          .source_stride = source.stride[0]};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const ms_pack_int8_call call = read(arguments);
  launcher.launch(launcher.kernels.ms_pack_int8, {ceil_div(call.N, 16)}, 256, call);
}

}  // namespace

const OpDefinition op_pack_int8 = {no_scratch<read>, run};

}  // namespace metashard::cuda
