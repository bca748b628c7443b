// The LLM.int8() product: int8 part, outlier part and bias in one launch with one rounding.
#include "int8_product.h"

namespace metashard::cuda {

namespace {

struct Call {
  Int8Operands operands;
  ms_int8_linear_call kernel;  // but for its product
};

Call read(const Arguments &arguments) {
  const Operand x = arguments.input(0, "x", 2, f32_only);   // [tokens, K]
  const Operand CA = arguments.input(1, "CA", 2, i8_only);  // [tokens, K]
  const Operand SCA = arguments.input(2, "SCA", 1, f32_only);
  const Operand outlier_cols = arguments.input(3, "outlier_cols", 1, i32_only);  // [K + 1]
  const Operand CB = arguments.matrix(4, "CB");                                  // [N, K]
  const Operand SCB = arguments.input(5, "SCB", 1, f32_only);
  const Operand bias = arguments.optional(6, "bias", 1, any_float);
  const Operand out = arguments.output(0, "out", 2, f32_only);  // [tokens, N]
  const int64_t rows = x.shape[0], K = x.shape[1], N = CB.shape[0];
  EXPECT(K <= longest_K, "int8_linear: expected K up to %lld, got %lld", static_cast<long long>(longest_K),
         static_cast<long long>(K));
  for (const Operand *tensor : {&x, &CA, &SCA, &outlier_cols, &SCB}) arguments.unit_stride(*tensor, "every input");
  arguments.shape(CA, "CA", {rows, K});
  arguments.shape(SCA, "SCA", {rows});
  arguments.shape(outlier_cols, "outlier_cols", {K + 1});
  arguments.shape(CB, "CB", {N, K});
  arguments.shape(SCB, "SCB", {N});
  if (bias.present) {
    arguments.unit_stride(bias, "bias");
    arguments.shape(bias, "bias", {N});
  }
  arguments.shape(out, "out", {rows, N});
  return {{CA, CB, arguments.scratch()},
          {.product = {}, .x = x.as<float>(), .SCA = SCA.as<float>(), .outlier_cols = outlier_cols.as<int32_t>(),
           .SCB = SCB.as<float>(), .bias = bias.data, .out = out.as<float>(), .x_stride = x.stride[0],
           .out_stride = out.stride[0], .bias_dtype = bias.dtype, .threshold = arguments.threshold(0),
           .per_row = arguments.attribute(1) != 0}};
}

size_t scratch(const Arguments &arguments) { return int8_product_scratch(read(arguments).operands); }

void run(const Arguments &arguments, const Launcher &launcher) {
  Call call = read(arguments);
  if (call.operands.CA.shape[0] == 0 || call.operands.CB.shape[0] == 0) return;
  call.kernel.product = prepare_int8_product(call.operands, launcher);
  launch_int8_product(launcher, launcher.kernels.ms_int8_linear_few, launcher.kernels.ms_int8_linear_tiles, call.kernel);
}

}  // namespace

const OpDefinition op_int8_linear = {scratch, run};

}  // namespace metashard::cuda
