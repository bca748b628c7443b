// The packed layout of backend.h → strided int8 [N, K].
#include "ops/matrix_calls.h"

namespace {

pack_int8_call read(const op_arguments &arguments) {
  const operand source = arguments.matrix(0, "packed");
  const operand destination = arguments.output_matrix(0, "CB", true, false);
  EXPECT(source.packed, "unpack_int8: expected packed in the packed layout, got the strided one");
  arguments.same_shape(destination, "CB", source);
  return {.N = source.shape[0],
          .K = source.shape[1],
          .source = source.as<int8_t>(),
          .destination = destination.as<int8_t>(),
          .stride = row_stride(destination)};
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const pack_int8_call call = read(arguments);
  if (call.N > 0) (call.K == 0 ? kernels_portable() : &isa.kernels)->unpack_int8(&call);
}

}  // namespace

const op_definition op_unpack_int8 = {scratch, run};
