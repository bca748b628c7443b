// A copy of a strided view, any dtype, rank and strides.
#include "elements.h"

namespace metashard::cuda {

namespace {

ms_copy_call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", any_dtype), out = arguments.output(0, "out", any_dtype);
  arguments.same_shape(out, "out", x);
  EXPECT(out.dtype == x.dtype, "copy: expected out of the dtype of x (code %d), got code %d", x.dtype, out.dtype);
  return {.out = out.data, .x = x.data, .elements = elements_of({&out, &x}),
          .element_bytes = dtype_bytes(x.dtype)};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  launch_elements(launcher, launcher.kernels.ms_copy, read(arguments));
}

}  // namespace

const OpDefinition op_copy = {no_scratch<read>, run};

}  // namespace metashard::cuda
