// The library of kernels built for the host, opened at run time, and its shared memory as the calling host thread sees it.
#pragma once
#include <string>

#include "kernel_module.h"

namespace metashard::emulator {

// The kernels of the library at `path`, which stays open. Null with the reason in `why` when it cannot be opened.
const KernelModule *open_kernel_module(const std::string &path, std::string &why);

const KernelEntry *find_kernel(const KernelModule &module, const char *name);

// The thread-local block of the kernels' library: every static __shared__ array of every kernel, and the dynamic one.
struct SharedMemory {
  const KernelModule *module = nullptr;
  unsigned char *dynamic = nullptr;
  unsigned char *block = nullptr;
  size_t block_bytes = 0;

  static constexpr unsigned char poison = 0xff;  // NaN as any float, -1 as any integer
  static constexpr size_t canary_bytes = 128;

  // Finds the calling thread's; cheap when asked again for the same module.
  void locate(const KernelModule &of);
  void poison_dynamic(size_t bytes) const;  // and a canary behind them
  void poison_static() const;
  size_t static_bytes() const;
  bool canary_intact(size_t bytes) const;
  bool contains(const void *address, size_t bytes) const;
};

}  // namespace metashard::emulator
