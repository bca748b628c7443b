// The part of the CUDA driver API that the plugin uses, declared here so that it builds without a toolkit: types, the statuses
// and flags we name, and the table of entry points. Facts only, no code; cu_contract.cpp holds them against the real cuda.h
// where there is one. Opening the driver is driver.h.
#pragma once
#include <cstddef>

namespace metashard::cuda {

using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st *;
using CUstream = struct CUstream_st *;
using CUevent = struct CUevent_st *;
using CUmodule = struct CUmod_st *;
using CUfunction = struct CUfunc_st *;
using CUgraph = struct CUgraph_st *;
using CUgraphExec = struct CUgraphExec_st *;

// Statuses that are treated in a way of their own (status.cpp); all others are internal errors under the driver's name.
#define MS_CU_RESULTS(X)                       \
  X(CUDA_SUCCESS, 0)                           \
  X(CUDA_ERROR_INVALID_VALUE, 1)               \
  X(CUDA_ERROR_OUT_OF_MEMORY, 2)               \
  X(CUDA_ERROR_NOT_INITIALIZED, 3)             \
  X(CUDA_ERROR_DEINITIALIZED, 4)               \
  X(CUDA_ERROR_STUB_LIBRARY, 34)               \
  X(CUDA_ERROR_DEVICE_UNAVAILABLE, 46)         \
  X(CUDA_ERROR_NO_DEVICE, 100)                 \
  X(CUDA_ERROR_INVALID_DEVICE, 101)            \
  X(CUDA_ERROR_INVALID_IMAGE, 200)             \
  X(CUDA_ERROR_INVALID_CONTEXT, 201)           \
  X(CUDA_ERROR_NO_BINARY_FOR_GPU, 209)         \
  X(CUDA_ERROR_ECC_UNCORRECTABLE, 214)         \
  X(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, 217)   \
  X(CUDA_ERROR_NVLINK_UNCORRECTABLE, 220)      \
  X(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, 222)   \
  X(CUDA_ERROR_INVALID_HANDLE, 400)            \
  X(CUDA_ERROR_NOT_FOUND, 500)                 \
  X(CUDA_ERROR_NOT_READY, 600)                 \
  X(CUDA_ERROR_ILLEGAL_ADDRESS, 700)           \
  X(CUDA_ERROR_LAUNCH_TIMEOUT, 702)            \
  X(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, 704) \
  X(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709)      \
  X(CUDA_ERROR_ASSERT, 710)                    \
  X(CUDA_ERROR_HARDWARE_STACK_ERROR, 714)      \
  X(CUDA_ERROR_ILLEGAL_INSTRUCTION, 715)       \
  X(CUDA_ERROR_MISALIGNED_ADDRESS, 716)        \
  X(CUDA_ERROR_INVALID_ADDRESS_SPACE, 717)     \
  X(CUDA_ERROR_INVALID_PC, 718)                \
  X(CUDA_ERROR_LAUNCH_FAILED, 719)             \
  X(CUDA_ERROR_NOT_SUPPORTED, 801)             \
  X(CUDA_ERROR_SYSTEM_NOT_READY, 802)          \
  X(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, 803)    \
  X(CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, 804) \
  X(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900) \
  X(CUDA_ERROR_TIMEOUT, 909)                   \
  X(CUDA_ERROR_EXTERNAL_DEVICE, 911)

enum CUresult : unsigned int {
#define X(name, value) name = value,
  MS_CU_RESULTS(X)
#undef X
  CUDA_ERROR_CONTAINED = 226,  // CUDA 12.8 and newer, so not in the list that older headers are held against
};

enum CUdevice_attribute : unsigned int {
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
};
enum CUfunction_attribute : unsigned int { CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };
enum CUstreamCaptureMode : unsigned int { CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1 };
enum CUstream_flags : unsigned int { CU_STREAM_NON_BLOCKING = 1 };
enum CUevent_flags : unsigned int { CU_EVENT_DISABLE_TIMING = 2 };
constexpr unsigned int host_alloc_portable = 1;  // CU_MEMHOSTALLOC_PORTABLE, a macro in cuda.h: pinned for every device

// One pointer per entry point, under its exported name.
struct CuFunctions {
#define MS_CU(name, parameters) CUresult(*name) parameters;
#include "cu_functions.def"
#undef MS_CU
};

}  // namespace metashard::cuda
