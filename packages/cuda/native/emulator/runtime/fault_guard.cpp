// See fault_guard.h.
#include "fault_guard.h"

#include <pthread.h>
#include <signal.h>

#include <array>
#include <cstdlib>
#include <mutex>

namespace metashard::emulator {

thread_local FaultGuard *current_guard = nullptr;

namespace {

constexpr std::array caught = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t handler_stack_bytes = 64 << 10;

struct sigaction previous[NSIG];

// Gives the signal to whoever handled it before us. Without a handler the default comes back, and the faulting instruction,
// run once more, ends the process as it would have without us.
void pass_on(int number, siginfo_t *info, void *context) {
  const struct sigaction &before = previous[number];
  if ((before.sa_flags & SA_SIGINFO) != 0) {
    before.sa_sigaction(number, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(number);
  } else {
    signal(number, SIG_DFL);
  }
}

void on_fault(int number, siginfo_t *info, void *context) {
  FaultGuard *guard = current_guard;
  if (guard == nullptr) return pass_on(number, info, context);
  guard->signal = number;
  guard->address = info->si_addr;
  siglongjmp(guard->exit, 1);
}

void install_handlers() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // no mask to restore when the handler is left by a jump
  for (const int number : caught) sigaction(number, &action, &previous[number]);
}

}  // namespace

void prepare_for_faults() {
  static std::once_flag installed;
  std::call_once(installed, install_handlers);
  thread_local bool prepared = false;
  if (prepared) return;
  prepared = true;
  stack_t stack = {};
  stack.ss_sp = std::malloc(handler_stack_bytes);  // as long as the thread, which never ends
  stack.ss_size = handler_stack_bytes;
  if (stack.ss_sp != nullptr) sigaltstack(&stack, nullptr);
}

void leave_guard() { siglongjmp(current_guard->exit, 1); }

}  // namespace metashard::emulator
