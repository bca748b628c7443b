// The driver as the tests of this folder open it: by path, through the plugin's table of entry points. Counts what was expected
// and prints what was not; one process, one driver.
#pragma once
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../../cu.h"

namespace metashard::emulator_test {

using namespace cuda;

struct TestDriver : CuFunctions {
  void *library = nullptr;

  explicit TestDriver(const char *path) {
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) give_up(dlerror());
#define MS_CU(name, parameters)                                             \
  name = reinterpret_cast<decltype(name)>(dlsym(library, #name));           \
  if (name == nullptr) give_up((std::string(path) + " lacks " #name).c_str());
#include "../../cu_functions.def"
#undef MS_CU
  }

  [[noreturn]] static void give_up(const char *why) {
    std::printf("cannot test: %s\n", why);
    std::exit(2);
  }

  std::string text(CUresult status) const {
    const char *words = nullptr;
    return cuGetErrorString(status, &words) == CUDA_SUCCESS && words != nullptr ? words : "";
  }
};

inline int expected = 0;
inline int failed = 0;

inline void expect(bool holds, const char *what, const char *file, int line) {
  expected++;
  if (holds) return;
  failed++;
  std::printf("FAILED %s:%d: %s\n", file, line, what);
}

inline void expect_status(CUresult got, CUresult wanted, const char *what, const char *file, int line) {
  expected++;
  if (got == wanted) return;
  failed++;
  std::printf("FAILED %s:%d: %s: expected status %u, got %u\n", file, line, what, wanted, got);
}

inline int report() {
  std::printf("%d expectations, %d failed\n", expected, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace metashard::emulator_test

#define EXPECT(condition) metashard::emulator_test::expect(condition, #condition, __FILE__, __LINE__)
#define EXPECT_STATUS(status, call) metashard::emulator_test::expect_status(call, status, #call, __FILE__, __LINE__)
#define OK(call) EXPECT_STATUS(CUDA_SUCCESS, call)
