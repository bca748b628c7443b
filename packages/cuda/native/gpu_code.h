// The kernels inside the plugin: a fat binary made from kernels/*.cu (or a marker, where it was built without a CUDA compiler),
// loaded once per GPU, and their typed launches. Which kernels an op needs is ops/*.cpp.
#pragma once
#include "device.h"
#include "kernels/calls.h"
#include "stream.h"

namespace metashard::cuda {

// A kernel by its parameter type: a launch with the arguments of another does not compile.
template <class Signature>
struct Kernel;

template <class Call>
struct Kernel<void(Call)> {
  const char *name;
  CUfunction function = nullptr;
};

struct Kernels {
#define MS_KERNEL(name, parameters) Kernel<void parameters> name{#name};
#include "kernels/kernel_list.def"
#undef MS_KERNEL
};

// The kernels as loaded on this GPU, whose context is current; the first call loads them. Throws MS_UNSUPPORTED where this
// build carries no code that the GPU can run.
const Kernels &kernels_of(Gpu &gpu);

struct Grid {
  int64_t x = 1;
  int64_t y = 1;
};

// Where an op runs: its kernels are enqueued in order on one stream.
class Launcher {
 public:
  Launcher(const Kernels &kernels, CUstream stream) : kernels(kernels), stream_(stream) {}

  const Kernels &kernels;

  // An empty grid launches nothing. `shared_bytes` of dynamic shared memory: at most 48 KiB, which every GPU has.
  template <class Call>
  void launch(const Kernel<void(Call)> &kernel, Grid grid, unsigned threads, Call call, size_t shared_bytes = 0) const {
    void *arguments[] = {&call};
    launch(kernel.name, kernel.function, grid, threads, shared_bytes, arguments);
  }

  void zero(void *pointer, size_t bytes) const;

 private:
  void launch(const char *name, CUfunction function, Grid grid, unsigned threads, size_t shared_bytes, void **arguments) const;

  CUstream stream_;
};

}  // namespace metashard::cuda
