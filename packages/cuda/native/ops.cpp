// The slots of ops. This build carries no kernels: every op is refused by name.
#include "slots.h"
#include "status.h"

namespace metashard::cuda {

namespace {

const char *op_name(int32_t op) {
  switch (op) {
#define MS_OP(name, code, inputs, outputs, attributes) \
  case code:                                           \
    return #name;
#include <metashard/ops.def>
#undef MS_OP
    default:
      return nullptr;
  }
}

[[noreturn]] void refuse_op(int32_t op) {
  const char *name = op_name(op);
  if (name == nullptr) refuse(MS_INVALID, "op code " + std::to_string(op) + ": no such op");
  refuse(MS_UNSUPPORTED, std::string("op ") + name + ": this build carries no kernels");
}

}  // namespace

int32_t op_supported(ms_context *, int32_t) { return 0; }

int op_scratch(ms_context *, const ms_op_call *call, size_t *, ms_error *error) {
  return guarded(error, [&] { refuse_op(call->op); });
}

int op_run(ms_context *, ms_stream *, const ms_op_call *call, ms_error *error) {
  return guarded(error, [&] { refuse_op(call->op); });
}

}  // namespace metashard::cuda
