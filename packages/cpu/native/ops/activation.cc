// The activation functions of ACTIVATION_KINDS in ops.ts, elementwise; any rank and strides.
#include <math.h>

#include "ops/elementwise.h"

namespace {

constexpr int kinds = 8;

struct activation_call {
  operand x, out;
  int32_t kind;
};

activation_call read(const op_arguments &arguments) {
  activation_call call;
  call.x = arguments.input(0, "x", f32_only);
  call.out = arguments.output(0, "out", f32_only);
  arguments.same_shape(call.out, "out", call.x);
  const double kind = arguments.attribute(0);
  EXPECT(kind >= 0 && kind < kinds && kind == floor(kind), "activation: expected a kind 0 to %d, got %g", kinds - 1, kind);
  call.kind = int32_t(kind);
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const activation_call call = read(arguments);
  element_walk({&call.out, &call.x}).run([&](const element_run &run) {
    const bool direct = run.stride_bytes[0] == 4 && run.stride_bytes[1] == 4;
    float *buffer = direct ? nullptr : static_cast<float *>(thread_workspace());
    float *out = direct ? reinterpret_cast<float *>(run.data[0]) : buffer;
    if (!direct) gather(reinterpret_cast<char *>(buffer), run.data[1], run.stride_bytes[1], run.count, 4);
    isa.vectors->activation(out, direct ? reinterpret_cast<float *>(run.data[1]) : buffer, run.count, call.kind);
    if (!direct) scatter(run.data[0], run.stride_bytes[0], reinterpret_cast<char *>(buffer), run.count, 4);
  });
}

}  // namespace

const op_definition op_activation = {scratch, run};
