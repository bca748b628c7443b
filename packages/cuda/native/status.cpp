// See status.h.
#include "status.h"

#include <array>
#include <cstdio>

namespace metashard::cuda {

void refuse(ms_status status, std::string message, Where where) {
  throw Failure{status, CUDA_SUCCESS, where, std::move(message)};
}

ms_status status_of(CUresult result) {
  switch (result) {
    case CUDA_SUCCESS:
      return MS_OK;
    case CUDA_ERROR_OUT_OF_MEMORY:
      return MS_OUT_OF_MEMORY;
    case CUDA_ERROR_NOT_INITIALIZED:
    case CUDA_ERROR_STUB_LIBRARY:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_SYSTEM_NOT_READY:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
      return MS_UNAVAILABLE;
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_PEER_ACCESS_UNSUPPORTED:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_NOT_SUPPORTED:
      return MS_UNSUPPORTED;
    // Sticky: from now on every call on this device returns the same, until the process ends.
    case CUDA_ERROR_DEINITIALIZED:
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_EXTERNAL_DEVICE:
      return MS_DEVICE_LOST;
    case CUDA_ERROR_INVALID_VALUE:
    case CUDA_ERROR_INVALID_CONTEXT:
    case CUDA_ERROR_INVALID_HANDLE:
      return MS_INVALID;
    default:  // 900 … 908 are broken rules of stream capture
      return result >= CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED && result < CUDA_ERROR_TIMEOUT ? MS_INVALID : MS_INTERNAL;
  }
}

std::string size_text(uint64_t bytes) {
  constexpr std::array units = {"KiB", "MiB", "GiB"};
  if (bytes < 1024) return std::to_string(bytes) + " bytes";
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < units.size(); unit++) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %s", value, units[unit]);
  return text;
}

int report(const Failure &failure, ms_error *error) noexcept {
  error->status = failure.status;
  error->line = static_cast<int32_t>(failure.where.line());
  error->file = failure.where.file_name();
  error->native_code = static_cast<int32_t>(failure.native);
  std::snprintf(error->message, sizeof error->message, "%s", failure.message.c_str());
  return failure.status;
}

}  // namespace metashard::cuda
