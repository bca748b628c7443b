// The table of ops (ops.def), their run counters, and the running of one op on a context.
#pragma once
#include <cstdint>

#include "memory.h"
#include "metashard/backend.h"

namespace metashard {

struct OpEntry {
  const char *name;
  int32_t code;
  int32_t inputs, outputs, attributes;  // at most
};

// The op of that code, or null.
const OpEntry *find_op(int64_t code);

// Scratch bytes the backend wants for a call. Call under in_use.
inline size_t op_scratch_bytes(Context &context, const ms_op_call &call) {
  size_t bytes = 0;
  ms_error error{};
  check(context.api().op_scratch(context.handle, &call, &bytes, &error), error);
  return bytes;
}

void count_op_run(int32_t code);
void check_scratch(size_t needed, size_t given);

// Enqueues one op and counts it. Call under in_use.
void run_op(Context &context, const ms_op_call &call);

}  // namespace metashard
