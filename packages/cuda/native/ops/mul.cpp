// a · b, elementwise; any rank and strides.
#include "elements.h"

namespace metashard::cuda {

namespace {

void run(const Arguments &arguments, const Launcher &launcher) {
  launch_elements(launcher, launcher.kernels.ms_mul_elements, read_binary(arguments));
}

}  // namespace

const OpDefinition op_mul = {no_scratch<read_binary>, run};

}  // namespace metashard::cuda
