// The activation functions of ACTIVATION_KINDS in ops.ts, elementwise; any rank and strides.
#include <cmath>

#include "elements.h"

namespace metashard::cuda {

namespace {

constexpr int kinds = 8;

ms_activation_call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", f32_only), out = arguments.output(0, "out", f32_only);
  arguments.same_shape(out, "out", x);
  const double kind = arguments.attribute(0);
  EXPECT(kind >= 0 && kind < kinds && kind == std::floor(kind), "activation: expected a kind 0 to %d, got %g", kinds - 1, kind);
  return {.out = out.as<float>(), .x = x.as<float>(), .elements = elements_of({&out, &x}), .kind = static_cast<int64_t>(kind)};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  launch_elements(launcher, launcher.kernels.ms_activation, read(arguments));
}

}  // namespace

const OpDefinition op_activation = {no_scratch<read>, run};

}  // namespace metashard::cuda
