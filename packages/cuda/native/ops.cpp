// The slots of ops: finds the op by its code, checks counts and scratch, and hands the call to ops/<name>.cpp.
#include "ops/op.h"
#include "slots.h"

namespace metashard::cuda {

namespace {

constexpr uintptr_t scratch_alignment = 64;

struct OpEntry {
  const char *name;
  int32_t code, inputs, outputs, attributes;
  const OpDefinition *definition;
};

constexpr OpEntry entries[] = {
#define MS_OP(name, code, inputs, outputs, attributes) {#name, code, inputs, outputs, attributes, &op_##name},
#include <metashard/ops.def>
#undef MS_OP
};

const OpEntry *find_op(int32_t code) {
  for (const OpEntry &op : entries) {
    if (op.code == code) return &op;
  }
  return nullptr;
}

const OpEntry &checked_op(const ms_op_call &call) {
  const OpEntry *op = find_op(call.op);
  if (op == nullptr) refuse(MS_UNSUPPORTED, format_text("cuda: expected an op of this backend, got code %d", call.op));
  EXPECT(call.n_inputs >= 0 && call.n_inputs <= op->inputs, "%s: expected at most %d inputs, got %d", op->name, op->inputs,
         call.n_inputs);
  EXPECT(call.n_outputs == op->outputs, "%s: expected %d outputs, got %d", op->name, op->outputs, call.n_outputs);
  EXPECT(call.n_attributes == op->attributes, "%s: expected %d attributes, got %d", op->name, op->attributes,
         call.n_attributes);
  return *op;
}

void check_scratch(const OpEntry &op, const ms_op_call &call, size_t needed) {
  if (needed == 0) return;
  EXPECT(call.scratch != nullptr && call.scratch_bytes >= needed, "%s: expected %zu bytes of scratch, got %zu", op.name, needed,
         call.scratch == nullptr ? size_t{0} : call.scratch_bytes);
  const uintptr_t beyond = reinterpret_cast<uintptr_t>(call.scratch) % scratch_alignment;
  EXPECT(beyond == 0, "%s: expected scratch aligned to 64 bytes, got an address %d beyond", op.name, static_cast<int>(beyond));
}

}  // namespace

int32_t op_supported(ms_context *, int32_t op) { return find_op(op) != nullptr; }

int op_scratch(ms_context *, const ms_op_call *call, size_t *bytes, ms_error *error) {
  return guarded(error, [&] {
    const OpEntry &op = checked_op(*call);
    *bytes = op.definition->scratch(Arguments(op.name, *call));
  });
}

int op_run(ms_context *context, ms_stream *stream, const ms_op_call *call, ms_error *error) {
  return guarded(error, [&] {
    const OpEntry &op = checked_op(*call);
    const Arguments arguments(op.name, *call);
    check_scratch(op, *call, op.definition->scratch(arguments));
    Gpu &gpu = enter(context);
    op.definition->run(arguments, Launcher(kernels_of(gpu), stream->handle));
  });
}

}  // namespace metashard::cuda
