// Statuses beyond those of ../../cu.h, and how an entry point fails: `refuse` keeps a sentence about what was wrong, which
// cuGetErrorString tells to the same thread in the place of the status' own text.
#pragma once
#include <string>

#include "../../cu.h"

namespace metashard::emulator {

using namespace cuda;

#define MS_EMULATED_RESULTS(X)                    \
  X(CUDA_ERROR_INVALID_IMAGE, 200)                \
  X(CUDA_ERROR_FILE_NOT_FOUND, 301)               \
  X(CUDA_ERROR_SHARED_OBJECT_INIT_FAILED, 303)    \
  X(CUDA_ERROR_ILLEGAL_STATE, 401)                \
  X(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, 705)      \
  X(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901)   \
  X(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, 903)     \
  X(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, 904)      \
  X(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, 905)     \
  X(CUDA_ERROR_CAPTURED_EVENT, 907)               \
  X(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, 908)  \
  X(CUDA_ERROR_UNKNOWN, 999)

#define X(name, value) constexpr CUresult name = static_cast<CUresult>(value);
MS_EMULATED_RESULTS(X)
#undef X

// Returns `status`, so that an entry point can end with `return refuse(…)`.
CUresult refuse(CUresult status, std::string what);

}  // namespace metashard::emulator
