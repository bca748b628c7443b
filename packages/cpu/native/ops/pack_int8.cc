// Strided int8 [N, K] → the packed layout of backend.h.
#include "ops/matrix_calls.h"

namespace {

pack_int8_call read(const op_arguments &arguments) {
  const operand source = arguments.input(0, "CB", 2, i8_only);
  const operand destination = arguments.output_matrix(0, "packed", false, true);
  arguments.unit_stride(source, "CB");
  arguments.same_shape(destination, "packed", source);
  return {.N = source.shape[0],
          .K = source.shape[1],
          .source = source.as<int8_t>(),
          .destination = destination.as<int8_t>(),
          .stride = row_stride(source)};
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const pack_int8_call call = read(arguments);
  if (call.N > 0) (call.K == 0 ? kernels_portable() : &isa.kernels)->pack_int8(&call);
}

}  // namespace

const op_definition op_pack_int8 = {scratch, run};
