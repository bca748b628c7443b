// cos and sin of positions · inverse frequencies. The angle is rounded to float32 first and the results after, as transformers
// does.
#include <math.h>

#include "ops/op.h"

namespace {

struct rope_table_call {
  operand positions, inverse_frequencies, cos, sin;
  float scaling;
};

rope_table_call read(const op_arguments &arguments) {
  rope_table_call call;
  call.positions = arguments.input(0, "positions", 1, i32_only);
  call.inverse_frequencies = arguments.input(1, "inverse_frequencies", 1, f32_only);
  call.cos = arguments.output(0, "cos", 2, f32_only);  // [tokens, R/2]
  call.sin = arguments.output(1, "sin", 2, f32_only);
  arguments.unit_stride(call.positions, "positions");
  arguments.unit_stride(call.inverse_frequencies, "inverse_frequencies");
  arguments.shape(call.cos, "cos", {call.positions.shape[0], call.inverse_frequencies.shape[0]});
  arguments.same_shape(call.sin, "sin", call.cos);
  call.scaling = float(arguments.attribute(0));
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void fill_row(const rope_table_call &call, int64_t t) {
  const float position = float(call.positions.as<int32_t>()[t]);
  float *cosines = call.cos.as<float>() + t * call.cos.stride[0], *sines = call.sin.as<float>() + t * call.sin.stride[0];
  for (int64_t i = 0; i < call.cos.shape[1]; i++) {
    const float angle = position * call.inverse_frequencies.as<float>()[i];
    cosines[i] = float(cos(double(angle))) * call.scaling;
    sines[i] = float(sin(double(angle))) * call.scaling;
  }
}

void run(const op_arguments &arguments, const isa_tables &) {
  const rope_table_call call = read(arguments);
  constexpr int64_t cost = 32;  // of a cosine and a sine, in elements copied
  parallel_rows(call.cos.shape[0], call.cos.shape[1] * cost, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) fill_row(call, t);
  });
}

}  // namespace

const op_definition op_rope_table = {scratch, run};
