// Rotary position embedding: the first R = 2 · (columns of cos) features of each head turn.
#include <utility>

#include "op.h"

namespace metashard::cuda {

namespace {

struct Call {
  int64_t tokens;
  ms_rope_call kernel;
};

Call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", 3, f32_only);      // [tokens, N, D]
  const Operand cos = arguments.input(1, "cos", 2, f32_only);  // [tokens, R/2]
  const Operand sin = arguments.input(2, "sin", 2, f32_only);
  const Operand out = arguments.output(0, "out", 3, f32_only);
  for (auto [tensor, name] : {std::pair{&x, "x"}, {&cos, "cos"}, {&sin, "sin"}}) arguments.unit_stride(*tensor, name);
  arguments.shape(cos, "cos", {x.shape[0], cos.shape[1]});
  arguments.same_shape(sin, "sin", cos);
  arguments.same_shape(out, "out", x);
  EXPECT(2 * cos.shape[1] <= x.shape[2], "rope: expected at most %lld columns in cos, half the head size, got %lld",
         static_cast<long long>(x.shape[2] / 2), static_cast<long long>(cos.shape[1]));
  return {x.shape[0],
          {.x = x.as<float>(), .cos = cos.as<float>(), .sin = sin.as<float>(), .out = out.as<float>(), .N = x.shape[1],
           .D = x.shape[2], .half = cos.shape[1], .cos_stride = cos.stride[0], .sin_stride = sin.stride[0],
           .x_stride = {x.stride[0], x.stride[1]}, .out_stride = {out.stride[0], out.stride[1]},
           .interleaved = arguments.attribute(0) != 0}};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const Call call = read(arguments);
  if (call.kernel.N * call.kernel.D > 0) launcher.launch(launcher.kernels.ms_rope, {call.tokens}, 256, call.kernel);
}

}  // namespace

const OpDefinition op_rope = {no_scratch<read>, run};

}  // namespace metashard::cuda
