// For ops that treat every element alike (add, mul, activation, cast, copy): dimensions that all operands step over evenly
// become one, and blocks take 1,024 elements each.
#pragma once
#include "op.h"

namespace metashard::cuda {

// All of the same shape, which the caller has checked. The first is the output.
ms_elements elements_of(std::initializer_list<const Operand *> operands);

template <class Call>
void launch_elements(const Launcher &launcher, const Kernel<void(Call)> &kernel, const Call &call) {
  launcher.launch(kernel, {ceil_div(call.elements.count, 1024)}, 256, call);
}

// The float32 operands out, a and b of one shape; for add and mul.
ms_binary_call read_binary(const Arguments &arguments);

}  // namespace metashard::cuda
