// Between float dtypes and from integers to float32; any rank and strides.
#include "elements.h"

namespace metashard::cuda {

namespace {

bool is_float(int32_t dtype) { return (any_float >> dtype & 1) != 0; }

ms_cast_call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", any_dtype);
  const Operand out = arguments.output(0, "out", is_float(x.dtype) ? any_float : f32_only);
  arguments.same_shape(out, "out", x);
  return {.out = out.data, .x = x.data, .elements = elements_of({&out, &x}), .out_dtype = out.dtype, .x_dtype = x.dtype};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  launch_elements(launcher, launcher.kernels.ms_cast, read(arguments));
}

}  // namespace

const OpDefinition op_cast = {no_scratch<read>, run};

}  // namespace metashard::cuda
