// x / sqrt(mean(x²) + epsilon) · weight over rows of H (Zhang & Sennrich 2019, arXiv 1910.07467); the sum in float64.
#include "ops/op.h"

namespace {

struct rms_norm_call {
  operand x, weight, out;
  double epsilon;
};

rms_norm_call read(const op_arguments &arguments) {
  rms_norm_call call;
  call.x = arguments.input(0, "x", 2, f32_only);  // [tokens, H]
  call.weight = arguments.input(1, "weight", 1, any_float);
  call.out = arguments.output(0, "out", 2, f32_only);
  arguments.unit_stride(call.x, "x");
  arguments.unit_stride(call.weight, "weight");
  arguments.shape(call.weight, "weight", {call.x.shape[1]});
  arguments.same_shape(call.out, "out", call.x);
  call.epsilon = arguments.attribute(0);
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const rms_norm_call call = read(arguments);
  const int64_t H = call.x.shape[1];
  if (H == 0) return;
  parallel_rows(call.x.shape[0], H, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) {
      isa.vectors->rms_norm(call.out.as<float>() + t * call.out.stride[0], call.x.as<float>() + t * call.x.stride[0],
                            call.weight.data, call.weight.dtype, H, call.epsilon);
    }
  });
}

}  // namespace

const op_definition op_rms_norm = {scratch, run};
