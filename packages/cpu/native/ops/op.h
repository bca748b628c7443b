// What an op is to the backend, and the little that all ops share. An op's file has three parts: `read` checks a call (its
// rules are those of packages/core/src/ops.ts) and gives it as a struct, `run` computes it, and one `const op_definition` names
// both.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "isa_level.h"
#include "op_arguments.h"
#include "pool.h"

using namespace metashard;  // op_arguments, operand

struct op_definition {
  // Checks the call and returns the scratch it needs, in bytes. Throws op_failure.
  size_t (*scratch)(const op_arguments &arguments);
  // Checks and runs it; call.scratch holds at least that much.
  void (*run)(const op_arguments &arguments, const isa_tables &isa);
};

#define MS_OP(name, code, inputs, outputs, attributes) extern const op_definition op_##name;
#include "metashard/ops.def"
#undef MS_OP

// parallel_for over a callable.
template <typename Body>
void parallel(int64_t tasks, const Body &body) {
  parallel_for(
      tasks, [](void *context, int64_t index) { (*static_cast<const Body *>(context))(index); }, const_cast<Body *>(&body));
}

// Cuts `rows` rows of `width` elements into tasks of about 32 Ki elements and runs body(first, end) for each.
template <typename Body>
void parallel_rows(int64_t rows, int64_t width, const Body &body) {
  constexpr int64_t elements_per_task = 32768;
  const int64_t step = width >= elements_per_task ? 1 : elements_per_task / (width > 0 ? width : 1);
  parallel((rows + step - 1) / step, [&](int64_t task) {
    const int64_t first = task * step, end = first + step;
    body(first, end < rows ? end : rows);
  });
}

inline size_t no_scratch(const op_arguments &) { return 0; }

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
