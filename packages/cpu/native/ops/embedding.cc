// Rows of a table, as float32.
#include "ops/op.h"

namespace {

struct embedding_call {
  operand ids, table, out;
};

embedding_call read(const op_arguments &arguments) {
  embedding_call call;
  call.ids = arguments.input(0, "ids", 1, i32_only);
  call.table = arguments.input(1, "table", 2, any_float);  // [V, H]
  call.out = arguments.output(0, "out", 2, f32_only);      // [tokens, H]
  arguments.unit_stride(call.ids, "ids");
  arguments.unit_stride(call.table, "table");
  arguments.shape(call.out, "out", {call.ids.shape[0], call.table.shape[1]});
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &isa) {
  const embedding_call call = read(arguments);
  const int64_t tokens = call.ids.shape[0], V = call.table.shape[0], H = call.table.shape[1];
  const int32_t *ids = call.ids.as<int32_t>();
  for (int64_t t = 0; t < tokens; t++) {
    EXPECT(ids[t] >= 0 && ids[t] < V, "embedding: expected ids from 0 to %lld, got %d at %lld", (long long)(V - 1), ids[t],
           (long long)t);
  }
  const int64_t row_bytes = call.table.stride[0] * dtype_bytes(call.table.dtype);
  parallel_rows(tokens, H, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) {
      isa.vectors->to_float32(call.out.as<float>() + t * call.out.stride[0], call.table.data + ids[t] * row_bytes,
                              call.table.dtype, H);
    }
  });
}

}  // namespace

const op_definition op_embedding = {scratch, run};
