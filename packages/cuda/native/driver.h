// The CUDA driver, opened at run time: the emulated one of this package where METASHARD_CUDA_EMULATED asks for devices, else
// METASHARD_CUDA_DRIVER (a path or library name), else libcuda.so.1. Nothing links it.
#pragma once
#include <string>

#include "cu.h"
#include "status.h"

namespace metashard::cuda {

struct Driver : CuFunctions {
  std::string path;
  int version = 0;  // 1000 × major + 10 × minor
  bool emulated = false;

  // "CUDA_ERROR_OUT_OF_MEMORY (2): out of memory"
  std::string result_text(CUresult result) const;
  // What the driver says about it: "out of memory".
  std::string own_text(CUresult result) const;
};

// The one driver of the process, opened and initialized by the first call. Throws MS_UNAVAILABLE with a sentence that says what
// is missing and what to do; a later call tries again.
const Driver &driver();

// Throws unless `result` is CUDA_SUCCESS. `call` names the entry point, with its operands where they tell something.
void check(CUresult result, const std::string &call, Where where = Where::current());

// Calls an entry point and throws on failure, naming it and the line of the call: CU_CALL(cuMemFree_v2, pointer).
#define CU_CALL(function, ...)                                                             \
  do {                                                                                     \
    const CUresult result_ = driver().function(__VA_ARGS__);                               \
    if (result_ != CUDA_SUCCESS) [[unlikely]] check(result_, #function, Where::current()); \
  } while (false)

}  // namespace metashard::cuda
