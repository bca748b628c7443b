// Rows of an int8 table, each element times its row's scale: CB · SCB / 127 in float64, rounded once. One copy of the code
// serves every instruction set: a row of a packed table lies in dwords 64 bytes apart, so that reading it is what takes time.
#include <string.h>

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

// `count` elements of a row times `scale` / 127.
void scale_bytes(const int8_t *row, int64_t count, double scale, float *out) {
  for (int64_t i = 0; i < count; i++) out[i] = float(row[i] * scale / 127.0);
}

// Row n of a packed table: columns 4 q … 4 q + 3 are dword n % 16 of line q of its block (backend.h).
void scale_packed_row(const operand &CB, int64_t n, double scale, float *out) {
  const int64_t H = CB.shape[1];
  const int8_t *lines = CB.as<int8_t>() + n / 16 * packed_int8_bytes(16, H) + n % 16 * 4;
  constexpr int64_t columns_at_once = 64;
  for (int64_t k = 0; k < H; k += columns_at_once, lines += columns_at_once * 16) {
    int8_t bytes[columns_at_once];  // a block is padded to these columns
    for (int64_t q = 0; q < columns_at_once / 4; q++) memcpy(bytes + q * 4, lines + q * 64, 4);
    scale_bytes(bytes, H - k < columns_at_once ? H - k : columns_at_once, scale, out + k);
  }
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
      const double scale = call.SCB.as<float>()[ids[t]];
      float *out = call.out.as<float>() + t * call.out.stride[0];
      if (call.CB.packed) scale_packed_row(call.CB, ids[t], scale, out);
      else scale_bytes(call.CB.as<int8_t>() + ids[t] * row_stride(call.CB), H, scale, out);
    }
  });
}

}  // namespace

const op_definition op_int8_embedding = {scratch, run};
