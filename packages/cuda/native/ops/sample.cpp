// One token per row of logits. Rows take turns on the stream, as ops.ts gives scratch for one.
#include "op.h"

namespace metashard::cuda {

namespace {

constexpr unsigned threads = 512;
constexpr size_t shared_bytes = 33 * 1024;  // at least `Shared` of sample.cu, which checks it

struct Call {
  Operand logits, parameters, uniforms, history, history_lengths, ids;
};

Call read(const Arguments &arguments) {
  Call call = {arguments.input(0, "logits", 2, f32_only),      // [R, V]
               arguments.input(1, "parameters", 2, f32_only),  // [R, 4]
               arguments.input(2, "uniforms", 1, f32_only),    // [R]
               arguments.input(3, "history", 2, i32_only),     // [R, L]
               arguments.input(4, "history_lengths", 1, i32_only), arguments.output(0, "ids", 1, i32_only)};
  const int64_t R = call.logits.shape[0];
  for (const Operand *tensor : {&call.logits, &call.parameters, &call.uniforms, &call.history, &call.history_lengths}) {
    arguments.unit_stride(*tensor, "every input");
  }
  arguments.shape(call.parameters, "parameters", {R, 4});
  arguments.shape(call.uniforms, "uniforms", {R});
  arguments.shape(call.history, "history", {R, call.history.shape[1]});
  arguments.shape(call.history_lengths, "history_lengths", {R});
  arguments.shape(call.ids, "ids", {R});
  EXPECT(call.logits.shape[1] > 0 || R == 0, "sample: expected logits of at least 1 id, got 0");
  return call;
}

// Weights [V] float64, then a bit for each id seen.
size_t scratch(const Arguments &arguments) { return static_cast<size_t>(round_up(read(arguments).logits.shape[1] * 12, 64)); }

ms_sample_call row_of(const Call &call, int64_t row, void *memory) {
  const int64_t V = call.logits.shape[1];
  auto *weights = static_cast<double *>(memory);
  return {.logits = call.logits.as<float>() + row * call.logits.stride[0],
          .parameters = call.parameters.as<float>() + row * call.parameters.stride[0],
          .uniform = call.uniforms.as<float>() + row,
          .history = call.history.as<int32_t>() + row * call.history.stride[0],
          .history_length = call.history_lengths.as<int32_t>() + row,
          .id = call.ids.as<int32_t>() + row,
          .weights = weights,
          .seen = reinterpret_cast<uint32_t *>(weights + V),
          .V = V,
          .L = call.history.shape[1]};
}

void run(const Arguments &arguments, const Launcher &launcher) {
  const Call call = read(arguments);
  for (int64_t row = 0; row < call.logits.shape[0]; row++) {
    launcher.launch(launcher.kernels.ms_sample, {1}, threads, row_of(call, row, arguments.scratch()), shared_bytes);
  }
}

}  // namespace

const OpDefinition op_sample = {scratch, run};

}  // namespace metashard::cuda
