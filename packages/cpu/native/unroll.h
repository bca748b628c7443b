// Loops unrolled while compiling, so that arrays of vectors indexed in them live in registers. (#pragma GCC unroll comes too late for
// nested loops: GCC 12 then keeps such arrays in memory, which halves a kernel.)
#pragma once
#include <type_traits>
#include <utility>

namespace {

template <class Body, int... indices>
[[gnu::always_inline]] inline void unroll_over(const Body &body, std::integer_sequence<int, indices...>) {
  (body(std::integral_constant<int, indices>{}), ...);
}

// body(0) … body(count - 1), the index a compile-time constant.
template <int count, class Body>
[[gnu::always_inline]] inline void unroll(const Body &body) {
  unroll_over(body, std::make_integer_sequence<int, count>{});
}

}  // namespace
