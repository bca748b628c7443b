// Loops unrolled while compiling, nested ones too: every index is a constant, so that arrays of vectors live in registers.
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
