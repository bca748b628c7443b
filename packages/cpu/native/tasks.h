// Cutting a kernel's work into tasks for the pool: by shape alone, so that no result depends on the number of threads.
// Everything here is in an anonymous namespace: each translation unit keeps the code built for its own instruction set.
#pragma once
#include <stdint.h>

#include "pool.h"

namespace {

inline int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }
inline int64_t round_up(int64_t value, int64_t unit) { return ceil_div(value, unit) * unit; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// parallel_for over a callable task(int64_t index).
template <class Task>
void for_each_task(int64_t tasks, const Task &task) {
  auto call = [](void *context, int64_t index) { (*static_cast<const Task *>(context))(index); };
  parallel_for(tasks, call, const_cast<Task *>(&task));
}

// Units of work that go into one task: no task is under 8192 cycles (2 µs, a multiple of what handing one out costs), and
// beyond that there are about 128 of them, enough to even out threads that are not equally fast.
inline int64_t units_per_task(int64_t units, double cycles_per_unit) {
  const double cycles = static_cast<double>(units) * cycles_per_unit;
  const double tasks = cycles / 8192 < 128 ? cycles / 8192 : 128;
  return tasks <= 1 ? units : ceil_div(units, static_cast<int64_t>(tasks));
}

// Units of a loop in tasks of units_per_task: task(first, end).
template <class Task>
void for_each_range(int64_t units, double cycles_per_unit, const Task &task) {
  const int64_t per_task = larger(1, units_per_task(units, cycles_per_unit));
  for_each_task(ceil_div(units, per_task),
                [&](int64_t index) { task(index * per_task, smaller(units, (index + 1) * per_task)); });
}

}  // namespace
