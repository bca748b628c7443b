// a · b, elementwise; any rank and strides.
#include "ops/elementwise.h"

namespace {

size_t scratch(const op_arguments &arguments) {
  arguments.same_shape(arguments.input(1, "b", f32_only), "b", arguments.input(0, "a", f32_only));
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) { run_binary(arguments, isa.vectors->mul); }

}  // namespace

const op_definition op_mul = {scratch, run};
