// What an op is to the backend. An op's file has three parts, as on the CPU: `read` checks a call (its rules are those of
// packages/core/src/ops.ts) and gives it as its kernels' arguments, `run` launches them, and one `const OpDefinition` names
// both.
#pragma once
#include "op_arguments.h"

#include "../gpu_code.h"

namespace metashard::cuda {

using Arguments = op_arguments;
using Operand = operand;

struct OpDefinition {
  // Checks the call and returns the scratch it needs, in bytes. Throws.
  size_t (*scratch)(const Arguments &arguments);
  // Checks the call and enqueues its kernels; the call's scratch holds at least that much. Empty outputs launch nothing.
  void (*run)(const Arguments &arguments, const Launcher &launcher);
};

#define MS_OP(name, code, inputs, outputs, attributes) extern const OpDefinition op_##name;
#include <metashard/ops.def>
#undef MS_OP

constexpr int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }
constexpr int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

// The scratch of an op that needs none: its `read` checks the call.
template <auto read>
size_t no_scratch(const Arguments &arguments) {
  read(arguments);
  return 0;
}

}  // namespace metashard::cuda
