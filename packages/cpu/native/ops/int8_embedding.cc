// Rows of an int8 table, each times its scale: CB · SCB / 127, the product in float64, rounded once.
#include "ops/matrix_calls.h"

namespace {

struct int8_embedding_call {
  operand ids, CB, SCB, out;
};

int8_embedding_call read(const op_arguments &arguments) {
  int8_embedding_call call;
  call.ids = arguments.input(0, "ids", 1, i32_only);
  call.CB = arguments.matrix(1, "CB");  // [V, H]
  call.SCB = arguments.input(2, "SCB", 1, f32_only);
  call.out = arguments.output(0, "out", 2, f32_only);  // [tokens, H]
  arguments.unit_stride(call.ids, "ids");
  arguments.unit_stride(call.SCB, "SCB");
  arguments.shape(call.SCB, "SCB", {call.CB.shape[0]});
  arguments.shape(call.out, "out", {call.ids.shape[0], call.CB.shape[1]});
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

// Element (n, k) of the matrix, strided or packed (backend.h).
int8_t element(const operand &CB, int64_t n, int64_t k) {
  const int8_t *data = CB.as<int8_t>();
  if (!CB.packed) return data[n * row_stride(CB) + k];
  const int64_t K = round_up(CB.shape[1], 64), block = n / 16 * (16 * K + 64);
  return data[block + k / 4 * 64 + n % 16 * 4 + k % 4];
}

void run(const op_arguments &arguments, const isa_tables &) {
  const int8_embedding_call call = read(arguments);
  const int64_t tokens = call.ids.shape[0], V = call.CB.shape[0], H = call.CB.shape[1];
  const int32_t *ids = call.ids.as<int32_t>();
  for (int64_t t = 0; t < tokens; t++) {
    EXPECT(ids[t] >= 0 && ids[t] < V, "int8_embedding: expected ids from 0 to %lld, got %d at %lld", (long long)(V - 1), ids[t],
           (long long)t);
  }
  parallel_rows(tokens, H, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) {
      const double SCB = call.SCB.as<float>()[ids[t]];
      float *out = call.out.as<float>() + t * call.out.stride[0];
      for (int64_t k = 0; k < H; k++) out[k] = float(element(call.CB, ids[t], k) * SCB / 127.0);
    }
  });
}

}  // namespace

const op_definition op_int8_embedding = {scratch, run};
