// int8 weights under float activations: x · (CB · SCB / 127)ᵀ + bias, summed in float64 and rounded once.
#include "ops/matrix_calls.h"

namespace {

struct int8_weight_linear_call {
  operand x, CB, SCB, bias, out;
};

int8_weight_linear_call read(const op_arguments &arguments) {
  int8_weight_linear_call call;
  call.x = arguments.input(0, "x", 2, f32_only);  // [rows, K]
  call.CB = arguments.matrix(1, "CB");            // [N, K]
  call.SCB = arguments.input(2, "SCB", 1, f32_only);
  call.out = arguments.output(0, "out", 2, f32_only);  // [rows, N]
  arguments.unit_stride(call.x, "x");
  arguments.unit_stride(call.SCB, "SCB");
  arguments.shape(call.CB, "CB", {call.CB.shape[0], call.x.shape[1]});
  arguments.shape(call.SCB, "SCB", {call.CB.shape[0]});
  arguments.shape(call.out, "out", {call.x.shape[0], call.CB.shape[0]});
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

int8_t element(const operand &CB, int64_t n, int64_t k) {
  const int8_t *data = CB.as<int8_t>();
  if (!CB.packed) return data[n * row_stride(CB) + k];
  const int64_t K = round_up(CB.shape[1], 64), block = n / 16 * (16 * K + 64);
  return data[block + k / 4 * 64 + n % 16 * 4 + k % 4];
}

void run(const op_arguments &arguments, const isa_tables &) {
  const int8_weight_linear_call call = read(arguments);
  const int64_t rows = call.x.shape[0], K = call.x.shape[1], N = call.CB.shape[0];
  parallel_rows(N, K, [&](int64_t first, int64_t end) {
    for (int64_t n = first; n < end; n++) {
      for (int64_t t = 0; t < rows; t++) {
        const float *x = call.x.as<float>() + t * call.x.stride[0];
        double sum = 0;
        for (int64_t k = 0; k < K; k++) sum += double(x[k]) * element(call.CB, n, k);
        call.out.as<float>()[t * call.out.stride[0] + n] = float(sum * call.SCB.as<float>()[n] / 127.0);
      }
    }
  });
}

}  // namespace

const op_definition op_int8_weight_linear = {scratch, run};
