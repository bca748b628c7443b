// (x - mean) / sqrt(variance + epsilon) · weight + bias over rows of H (Ba et al. 2016, arXiv 1607.06450); sums in float64.
#include "ops/op.h"

namespace {

struct layer_norm_call {
  operand x, weight, bias, out;
  double epsilon;
};

layer_norm_call read(const op_arguments &arguments) {
  layer_norm_call call;
  call.x = arguments.input(0, "x", 2, f32_only);  // [tokens, H]
  call.weight = arguments.input(1, "weight", 1, any_float);
  call.bias = arguments.optional(2, "bias", 1, any_float);
  call.out = arguments.output(0, "out", 2, f32_only);
  arguments.unit_stride(call.x, "x");
  arguments.unit_stride(call.weight, "weight");
  arguments.shape(call.weight, "weight", {call.x.shape[1]});
  if (call.bias.present) {
    arguments.unit_stride(call.bias, "bias");
    arguments.shape(call.bias, "bias", {call.x.shape[1]});
  }
  arguments.same_shape(call.out, "out", call.x);
  call.epsilon = arguments.attribute(0);
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const layer_norm_call call = read(arguments);
  const int64_t H = call.x.shape[1];
  if (H == 0) return;
  parallel_rows(call.x.shape[0], H, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) {
      isa.vectors->layer_norm(call.out.as<float>() + t * call.out.stride[0], call.x.as<float>() + t * call.x.stride[0],
                              call.weight.data, call.weight.dtype, call.bias.data, call.bias.dtype, H, call.epsilon);
    }
  });
}

}  // namespace

const op_definition op_layer_norm = {scratch, run};
