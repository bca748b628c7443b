// The slots of ops: finds the op by its code, checks counts and scratch, and hands the call to ops/<name>.cpp.
#include "ops/op.h"
#include "slots.h"

namespace metashard::cuda {

namespace {

struct OpEntry {
  int32_t code;
  op_counts counts;
  const OpDefinition *definition;
};

constexpr OpEntry entries[] = {
#define MS_OP(name, code, inputs, outputs, attributes) {code, {#name, inputs, outputs, attributes}, &op_##name},
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
  if (op == nullptr) fail(MS_UNSUPPORTED, __FILE__, __LINE__, "cuda: expected an op of this backend, got code %d", call.op);
  check_counts(op->counts, call);
  return *op;
}

}  // namespace

int32_t op_supported(ms_context *, int32_t op) { return find_op(op) != nullptr; }

int op_scratch(ms_context *, const ms_op_call *call, size_t *bytes, ms_error *error) {
  return guarded(error, [&] {
    const OpEntry &op = checked_op(*call);
    *bytes = op.definition->scratch(op_arguments(op.counts.name, *call));
  });
}

int op_run(ms_context *context, ms_stream *stream, const ms_op_call *call, ms_error *error) {
  return guarded(error, [&] {
    const OpEntry &op = checked_op(*call);
    const op_arguments arguments(op.counts.name, *call);
    check_scratch(arguments.op(), *call, op.definition->scratch(arguments));
    Gpu &gpu = enter(context);
    op.definition->run(arguments, Launcher(kernels_of(gpu), stream->handle));
  });
}

}  // namespace metashard::cuda
