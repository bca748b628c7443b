// See elements.h.
#include "elements.h"

namespace metashard::cuda {

ms_elements elements_of(std::initializer_list<const Operand *> operands) {
  const Operand &first = **operands.begin();
  ms_elements elements = {.count = 1, .shape = {1, 1, 1, 1}, .stride = {}, .rank = 0};
  for (int d = first.rank - 1; d >= 0; d--) {
    elements.count *= first.shape[d];
    if (first.shape[d] == 1) continue;
    const int inner = elements.rank - 1;
    bool merges = inner >= 0;
    int k = 0;
    for (const Operand *each : operands) {
      merges = merges && each->stride[d] == elements.stride[k][inner] * elements.shape[inner];
      k++;
    }
    if (merges) {
      elements.shape[inner] *= first.shape[d];
      continue;
    }
    elements.shape[elements.rank] = first.shape[d];
    k = 0;
    for (const Operand *each : operands) elements.stride[k++][elements.rank] = each->stride[d];
    elements.rank++;
  }
  if (elements.rank == 0) elements.rank = 1;  // one element
  return elements;
}

ms_binary_call read_binary(const Arguments &arguments) {
  const Operand a = arguments.input(0, "a", f32_only), b = arguments.input(1, "b", f32_only);
  const Operand out = arguments.output(0, "out", f32_only);
  arguments.same_shape(b, "b", a);
  arguments.same_shape(out, "out", a);
  return {.out = out.as<float>(), .a = a.as<float>(), .b = b.as<float>(), .elements = elements_of({&out, &a, &b})};
}

}  // namespace metashard::cuda
