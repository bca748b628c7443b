// The devices the addon sees and the GPUs behind them. METASHARD_VIRTUAL_CUDA=N (default 1) makes N devices of every GPU:
// device N × gpu + part, each with a hard share of the GPU's memory. Devices of one GPU share its primary context.
#pragma once
#include <atomic>
#include <deque>
#include <metashard/backend.h>
#include <mutex>
#include <string>

#include "driver.h"

namespace metashard::cuda {

struct Kernels;

struct Gpu {
  int ordinal = 0;
  CUdevice handle = 0;
  std::string name;
  uint64_t total_bytes = 0;
  int compute_major = 0;
  int compute_minor = 0;

  // The primary context, retained by the first context_open for the life of the process: peer access and loaded code belong to
  // it, and a GPU that nobody opened holds none.
  CUcontext context = nullptr;
  const Kernels *kernels = nullptr;  // loaded by the first op (gpu_code.h)
  std::mutex opening;                // of both
};

struct Device {
  int32_t index = 0;
  int32_t part = 0;  // 0 … parts - 1 of its GPU
  Gpu *gpu = nullptr;
  uint64_t share_bytes = 0;
  std::atomic<uint64_t> used_bytes = 0;
};

struct DeviceList {
  int32_t parts = 1;  // devices per GPU
  std::deque<Gpu> gpus;
  std::deque<Device> devices;
};

// Found once. Throws MS_UNAVAILABLE without a driver or a GPU, MS_INVALID for a METASHARD_VIRTUAL_CUDA that is no count.
DeviceList &device_list();

// Makes the GPU's primary context, if it is not there yet.
void open_gpu(Gpu &gpu);
void make_current(const Gpu &gpu);

}  // namespace metashard::cuda

struct ms_context {
  metashard::cuda::Device &device;
};

namespace metashard::cuda {

// Makes the context current on the calling thread; every slot that calls the driver begins with it.
inline Gpu &enter(const ms_context *context) {
  make_current(*context->device.gpu);
  return *context->device.gpu;
}

}  // namespace metashard::cuda
