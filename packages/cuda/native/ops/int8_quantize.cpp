// LLM.int8() row quantization of activations with its outlier columns (Dettmers et al. 2022, arXiv 2208.07339, section 3).
#include "op.h"

namespace metashard::cuda {

namespace {

struct Call {
  int64_t rows;
  ms_int8_quantize_call kernel;
};

Call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", 2, f32_only);  // [tokens, K]
  const Operand CA = arguments.output(0, "CA", 2, i8_only);
  const Operand SCA = arguments.output(1, "SCA", 1, f32_only);
  const Operand outlier_cols = arguments.output(2, "outlier_cols", 1, i32_only);
  arguments.unit_stride(x, "x");
  arguments.same_shape(CA, "CA", x);
  arguments.shape(SCA, "SCA", {x.shape[0]});
  arguments.shape(outlier_cols, "outlier_cols", {x.shape[1] + 1});
  return {x.shape[0],
          {.x = x.as<float>(), .CA = CA.as<int8_t>(), .SCA = SCA.as<float>(), .outlier_cols = outlier_cols.as<int32_t>(),
           .flags = static_cast<uint32_t *>(arguments.scratch()), .K = x.shape[1], .x_stride = x.stride[0],
           .CA_stride = CA.stride[0], .threshold = arguments.threshold(0),
           .per_row = arguments.attribute(1) != 0}};
}

size_t flag_bytes(int64_t K) { return static_cast<size_t>(ceil_div(K, 32)) * sizeof(uint32_t); }

// Flags are needed with a threshold only, but a plan should not depend on it.
size_t scratch(const Arguments &arguments) { return flag_bytes(read(arguments).kernel.K); }

void run(const Arguments &arguments, const Launcher &launcher) {
  const auto &[rows, call] = read(arguments);
  if (rows == 0) return launcher.zero(call.outlier_cols, sizeof(int32_t));
  const bool outliers = call.threshold > 0;
  if (outliers) launcher.zero(call.flags, flag_bytes(call.K));
  launcher.launch(launcher.kernels.ms_int8_quantize_rows, {rows}, 256, call);
  if (!outliers) return;
  launcher.launch(launcher.kernels.ms_int8_quantize_list_columns, {1}, 256, call);
  // A single row has zeros there already.
  if (!call.per_row && rows > 1) launcher.launch(launcher.kernels.ms_int8_quantize_zero_columns, {rows}, 128, call);
}

}  // namespace

const OpDefinition op_int8_quantize = {scratch, run};

}  // namespace metashard::cuda
