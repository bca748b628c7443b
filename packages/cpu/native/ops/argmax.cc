// Index of the largest value of each row; the first of equals; NaN counts as largest.
#include "ops/op.h"

namespace {

struct argmax_call {
  operand x, out;
};

argmax_call read(const op_arguments &arguments) {
  argmax_call call = {arguments.input(0, "x", 2, f32_only), arguments.output(0, "out", 1, i32_only)};
  arguments.unit_stride(call.x, "x");
  arguments.shape(call.out, "out", {call.x.shape[0]});
  EXPECT(call.x.shape[1] > 0 || call.x.shape[0] == 0, "argmax: expected rows of at least 1 value, got 0");
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const argmax_call call = read(arguments);
  parallel_rows(call.x.shape[0], call.x.shape[1], [&](int64_t first, int64_t end) {
    for (int64_t row = first; row < end; row++) {
      const float *x = call.x.as<float>() + row * call.x.stride[0];
      call.out.as<int32_t>()[row] = int32_t(isa.vectors->argmax(x, call.x.shape[1]));
    }
  });
}

}  // namespace

const op_definition op_argmax = {scratch, run};
