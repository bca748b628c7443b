// Rows `rows[o]` of x.
#include <string.h>

#include "ops/op.h"

namespace {

struct select_rows_call {
  operand x, rows, out;
};

select_rows_call read(const op_arguments &arguments) {
  select_rows_call call;
  call.x = arguments.input(0, "x", 2, f32_only);  // [tokens, H]
  call.rows = arguments.input(1, "rows", 1, i32_only);
  call.out = arguments.output(0, "out", 2, f32_only);  // [outputs, H]
  arguments.unit_stride(call.x, "x");
  arguments.unit_stride(call.rows, "rows");
  arguments.shape(call.out, "out", {call.rows.shape[0], call.x.shape[1]});
  return call;
}

size_t scratch(const op_arguments &arguments) {
  read(arguments);
  return 0;
}

void run(const op_arguments &arguments, const isa_tables &) {
  const select_rows_call call = read(arguments);
  const int64_t outputs = call.rows.shape[0], tokens = call.x.shape[0], H = call.x.shape[1];
  const int32_t *rows = call.rows.as<int32_t>();
  for (int64_t o = 0; o < outputs; o++) {
    EXPECT(rows[o] >= 0 && rows[o] < tokens, "select_rows: expected rows from 0 to %lld, got %d at %lld",
           (long long)(tokens - 1), rows[o], (long long)o);
  }
  parallel_rows(outputs, H, [&](int64_t first, int64_t end) {
    for (int64_t o = first; o < end; o++) {
      memcpy(call.out.as<float>() + o * call.out.stride[0], call.x.as<float>() + rows[o] * call.x.stride[0], size_t(H) * 4);
    }
  });
}

}  // namespace

const op_definition op_select_rows = {scratch, run};
