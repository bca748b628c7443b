// Turns what the processor refuses (a wild pointer, a division by zero, a stack that is too deep) into a value, within a scope:
// `guarded` runs a body and says what stopped it. Kernels and the driver's copies run under it; everything else in the process
// keeps its own signal handlers. Leaving is by siglongjmp, so the body must hold no lock and nothing that has to be destroyed.
#pragma once
#include <csetjmp>

namespace metashard::emulator {

struct FaultGuard {
  sigjmp_buf exit;
  int signal = 0;                 // what stopped the body; 0: `leave_guard` did
  const void *address = nullptr;  // of the access, where the signal tells
};

// The innermost guard of the calling host thread, or null.
extern thread_local FaultGuard *current_guard __attribute__((tls_model("initial-exec")));

// Installs the handlers (once) and gives the calling thread a stack to handle faults on (once a thread). Called by the
// emulator's own threads only: other threads' alternate stacks are not ours.
void prepare_for_faults();

// Ends the innermost guarded body at once.
[[noreturn]] void leave_guard();

// Runs `body` and returns true, or returns false when a fault or leave_guard ended it; `guard` then tells which.
template <class Body>
bool guarded_run(FaultGuard &guard, Body &&body) {
  guard.signal = 0;
  guard.address = nullptr;
  FaultGuard *const outer = current_guard;
  if (sigsetjmp(guard.exit, 0) != 0) {
    current_guard = outer;
    return false;
  }
  current_guard = &guard;
  body();
  current_guard = outer;
  return true;
}

}  // namespace metashard::emulator
