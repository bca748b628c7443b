// a + b, elementwise; any rank and strides.
#include "elements.h"

namespace metashard::cuda {

namespace {

void run(const Arguments &arguments, const Launcher &launcher) {
  launch_elements(launcher, launcher.kernels.ms_add_elements, read_binary(arguments));
}

}  // namespace

const OpDefinition op_add = {no_scratch<read_binary>, run};

}  // namespace metashard::cuda
