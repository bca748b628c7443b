// See fiber.h.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef __x86_64__
// void metashard_change_stack(void **save, void *load): System V callee-saved registers go to the stack that is left.
asm(R"(
.text
.hidden metashard_change_stack
.globl metashard_change_stack
.type metashard_change_stack, @function
metashard_change_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size metashard_change_stack, .-metashard_change_stack
)");
#endif

namespace metashard::emulator {

namespace {

constexpr size_t colour_step = 448;  // seven cache lines
constexpr size_t colour_range = 8192;

}  // namespace

Fiber::Fiber(void (*entry)(), size_t colour) : entry_(entry), colour_(colour) {
  void *mapping = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<char *>(mapping);
  mprotect(mapping_, guard_bytes, PROT_NONE);
  reset();
}

Fiber::~Fiber() {
  if (mapping_ != nullptr) munmap(mapping_, guard_bytes + stack_bytes);
}

bool Fiber::guards(const void *address) const {
  return address >= mapping_ && address < mapping_ + guard_bytes;
}

#ifdef __x86_64__

void Fiber::reset() {
  char *top = mapping_ + guard_bytes + stack_bytes - 64 - (colour_ * colour_step % colour_range & ~size_t{63});
  void **frame = reinterpret_cast<void **>(top);
  *--frame = nullptr;  // where a return address would be: `entry` finds the stack aligned as after a call
  *--frame = reinterpret_cast<void *>(entry_);
  for (int registers = 0; registers < 6; registers++) *--frame = nullptr;
  stack_pointer_ = frame;
}

#else

void Fiber::reset() {
  getcontext(&context_);
  context_.uc_stack.ss_sp = mapping_ + guard_bytes;
  context_.uc_stack.ss_size = stack_bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry_, 0);
}

#endif

}  // namespace metashard::emulator
