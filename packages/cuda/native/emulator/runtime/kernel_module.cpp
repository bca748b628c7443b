// Compiled into every library of kernels built for the host, with MS_KERNEL_LIST naming its list of MS_KERNEL(name,
// parameters): declares the kernels (the linker finds a missing one), describes them, and owns the dynamic shared memory.
#include "kernel_module.h"

#include "../../simt/simt.h"

// At least what any GPU gives a block (227 KiB on sm_90), and a canary behind it.
SIMT_DYNAMIC_SHARED(smem);
alignas(1024) thread_local unsigned char smem[232448 + 1024];

#define MS_KERNEL(name, parameters) extern "C" __global__ void name parameters;
#include MS_KERNEL_LIST
#undef MS_KERNEL

namespace metashard::emulator {

namespace {

constexpr KernelEntry kernels[] = {
#define MS_KERNEL(name, parameters) KernelSignature<&name>::entry(#name),
#include MS_KERNEL_LIST
#undef MS_KERNEL
};

constexpr KernelModule module = {kernels, sizeof kernels / sizeof *kernels, [] { return smem; }, 232448};

}  // namespace

}  // namespace metashard::emulator

extern "C" __attribute__((visibility("default"))) const metashard::emulator::KernelModule *metashard_kernel_module() {
  return &metashard::emulator::module;
}
