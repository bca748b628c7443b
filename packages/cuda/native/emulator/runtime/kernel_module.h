// What a library of kernels built for the host shows of itself: each kernel's name, parameters and a way to call it for one
// thread, and where its shared memory lies. kernel_module.cpp makes it from a kernel list; kernel_library.h opens it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace metashard::emulator {

struct KernelParameter {
  uint16_t bytes;
  uint16_t alignment;
  bool pointer;
};

struct KernelEntry {
  const char *name;
  void (*call)(void **arguments);  // arguments[i] points at the value of parameter i, as cuLaunchKernel takes them
  const KernelParameter *parameters;
  size_t parameter_count;
};

struct KernelModule {
  const KernelEntry *kernels;
  size_t kernel_count;
  unsigned char *(*dynamic_shared)();  // the calling host thread's; its library's thread-local block holds all __shared__
  size_t dynamic_shared_bytes;
};

// The library's one exported symbol.
using KernelModuleGet = const KernelModule *();
#define METASHARD_KERNEL_MODULE_ENTRY "metashard_kernel_module"

template <auto kernel>
struct KernelSignature;

template <class... A, void (*kernel)(A...)>
struct KernelSignature<kernel> {
  static_assert((std::is_trivially_copyable_v<A> && ...), "a kernel's parameters are copied as bytes");
  // One more than there are, so that a kernel without parameters has an array, too.
  static constexpr KernelParameter parameters[sizeof...(A) + 1] = {
      {static_cast<uint16_t>(sizeof(A)), static_cast<uint16_t>(alignof(A)), std::is_pointer_v<A>}...};

  static void call(void **arguments) { spread(arguments, std::index_sequence_for<A...>{}); }
  static constexpr KernelEntry entry(const char *name) { return {name, &call, parameters, sizeof...(A)}; }

 private:
  template <size_t... i>
  static void spread([[maybe_unused]] void **arguments, std::index_sequence<i...>) {
    kernel(*static_cast<std::remove_cv_t<A> *>(arguments[i])...);
  }
};

}  // namespace metashard::emulator
