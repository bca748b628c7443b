// Rotary position embedding (Su et al. 2021, arXiv 2104.09864): the first R = 2 · (columns of cos) features of each head turn.
#include <utility>

#include "ops/op.h"

namespace {

struct rope_call {
  operand x, cos, sin, out;
  bool interleaved;
};

rope_call read(const op_arguments &arguments) {
  rope_call call;
  call.x = arguments.input(0, "x", 3, f32_only);      // [tokens, N, D]
  call.cos = arguments.input(1, "cos", 2, f32_only);  // [tokens, R/2]
  call.sin = arguments.input(2, "sin", 2, f32_only);
  call.out = arguments.output(0, "out", 3, f32_only);
  for (auto [tensor, name] : {std::pair{&call.x, "x"}, {&call.cos, "cos"}, {&call.sin, "sin"}}) {
    arguments.unit_stride(*tensor, name);
  }
  arguments.shape(call.cos, "cos", {call.x.shape[0], call.cos.shape[1]});
  arguments.same_shape(call.sin, "sin", call.cos);
  arguments.same_shape(call.out, "out", call.x);
  EXPECT(2 * call.cos.shape[1] <= call.x.shape[2], "rope: expected at most %lld columns in cos, half the head size, got %lld",
         (long long)(call.x.shape[2] / 2), (long long)call.cos.shape[1]);
  call.interleaved = arguments.attribute(0) != 0;
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const rope_call call = read(arguments);
  const auto turn = call.interleaved ? isa.vectors->rope_interleaved : isa.vectors->rope;
  const int64_t N = call.x.shape[1], D = call.x.shape[2], half = call.cos.shape[1];
  parallel_rows(call.x.shape[0], N * D, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) {
      const float *cos = call.cos.as<float>() + t * call.cos.stride[0], *sin = call.sin.as<float>() + t * call.sin.stride[0];
      for (int64_t n = 0; n < N; n++) {
        const rope_row row = {call.out.as<float>() + t * call.out.stride[0] + n * call.out.stride[1],
                              call.x.as<float>() + t * call.x.stride[0] + n * call.x.stride[1],
                              cos,
                              sin,
                              half,
                              D};
        turn(&row);
      }
    }
  });
}

}  // namespace

const op_definition op_rope = {scratch, run};
