// CA · CBᵀ, exact in int32.
#include "int8_product.h"

namespace metashard::cuda {

namespace {

struct Call {
  Int8Operands operands;
  ms_int8_matmul_call kernel;  // but for its product
};

Call read(const Arguments &arguments) {
  const Operand CA = arguments.input(0, "CA", 2, i8_only);  // [M, K]
  const Operand CB = arguments.matrix(1, "CB");             // [N, K]
  const Operand out = arguments.output(0, "accumulators", 2, i32_only);
  const int64_t K = CA.shape[1];
  EXPECT(K <= longest_K, "int8_matmul: expected K up to %lld, got %lld", static_cast<long long>(longest_K),
         static_cast<long long>(K));
  arguments.unit_stride(CA, "CA");
  arguments.shape(CB, "CB", {CB.shape[0], K});
  arguments.shape(out, "accumulators", {CA.shape[0], CB.shape[0]});
  return {{CA, CB, arguments.scratch()}, {.product = {}, .out = out.as<int32_t>(), .out_stride = out.stride[0]}};
}

size_t scratch(const Arguments &arguments) { return int8_product_scratch(read(arguments).operands); }

void run(const Arguments &arguments, const Launcher &launcher) {
  Call call = read(arguments);
  if (call.operands.CA.shape[0] == 0 || call.operands.CB.shape[0] == 0) return;
  call.kernel.product = prepare_int8_product(call.operands, launcher);
  launch_int8_product(launcher, launcher.kernels.ms_int8_matmul_few, launcher.kernels.ms_int8_matmul_tiles, call.kernel);
}

}  // namespace

const OpDefinition op_int8_matmul = {scratch, run};

}  // namespace metashard::cuda
