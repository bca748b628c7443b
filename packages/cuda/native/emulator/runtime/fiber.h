// Fibers: a stack each, switched by hand. x86-64 saves the callee-saved registers only (a few nanoseconds); elsewhere ucontext
// does it (some 200 ns). No fiber ever moves between host threads. Not here: who runs next (block_runner).
#pragma once
#include <cstddef>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef __x86_64__
// Saves the stack pointer, with the callee-saved registers on the stack it leaves, and goes on where `load` was saved.
extern "C" __attribute__((visibility("hidden"))) void metashard_change_stack(void **save, void *load);
#endif

namespace metashard::emulator {

class Fiber {
 public:
  static constexpr size_t stack_bytes = size_t{64} << 10;
  static constexpr size_t guard_bytes = 4096;  // below the stack, inaccessible

  // A fiber that runs `entry` on a new stack when first switched to; `entry` never returns. `colour` shifts the stack's top:
  // equal depths of many fibers must not fall into the same cache sets.
  Fiber(void (*entry)(), size_t colour);
  // The calling thread's own stack, to switch away from and back to.
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber &) = delete;
  Fiber &operator=(const Fiber &) = delete;

  // Forgets what the fiber was doing; the next switch to it runs `entry` anew.
  void reset();
  bool guards(const void *address) const;

  // Leaves `from`, the running fiber, and goes on with `to`.
  static void change(Fiber &from, Fiber &to);

 private:
  char *mapping_ = nullptr;
  void (*entry_)() = nullptr;
  size_t colour_ = 0;
#ifdef __x86_64__
  void *stack_pointer_ = nullptr;
#else
  ucontext_t context_{};
#endif
};

inline void Fiber::change(Fiber &from, Fiber &to) {
#ifdef __x86_64__
  metashard_change_stack(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
}

}  // namespace metashard::emulator
