// See device.h. The slots device_count, device_info, context_open, context_close.
#include "device.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "slots.h"

namespace metashard::cuda {

namespace {

constexpr const char *virtual_variable = "METASHARD_VIRTUAL_CUDA";
constexpr int32_t most_parts = 64;

int32_t parts_per_gpu() {
  const char *text = std::getenv(virtual_variable);
  if (text == nullptr || *text == '\0') return 1;
  int32_t parts = 0;
  const char *end = text + std::strlen(text);
  const auto [stop, failed] = std::from_chars(text, end, parts);
  if (failed == std::errc() && stop == end && parts >= 1 && parts <= most_parts) return parts;
  refuse(MS_INVALID, std::string(virtual_variable) + ": expected a number of devices per GPU from 1 to " +
                         std::to_string(most_parts) + ", got \"" + text + "\"");
}

void read_gpu(Gpu &gpu, int ordinal) {
  gpu.ordinal = ordinal;
  CU_CALL(cuDeviceGet, &gpu.handle, ordinal);
  char name[128] = {};
  CU_CALL(cuDeviceGetName, name, sizeof name - 1, gpu.handle);
  gpu.name = name;
  size_t bytes = 0;
  CU_CALL(cuDeviceTotalMem_v2, &bytes, gpu.handle);
  gpu.total_bytes = bytes;
  CU_CALL(cuDeviceGetAttribute, &gpu.compute_major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, gpu.handle);
  CU_CALL(cuDeviceGetAttribute, &gpu.compute_minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, gpu.handle);
}

void find_devices(DeviceList &list) {
  int count = 0;
  CU_CALL(cuDeviceGetCount, &count);
  if (count == 0) {
    refuse(MS_UNAVAILABLE,
           driver().path + " opens but lists no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use cpu devices");
  }
  list.parts = parts_per_gpu();
  for (int ordinal = 0; ordinal < count; ordinal++) {
    Gpu &gpu = list.gpus.emplace_back();
    read_gpu(gpu, ordinal);
    for (int32_t part = 0; part < list.parts; part++) {
      Device &device = list.devices.emplace_back();
      device.index = ordinal * list.parts + part;
      device.part = part;
      device.gpu = &gpu;
      device.share_bytes = gpu.total_bytes / static_cast<uint64_t>(list.parts);
    }
  }
}

Device &device_at(int32_t index) {
  DeviceList &list = device_list();
  const auto count = static_cast<int32_t>(list.devices.size());
  if (index >= 0 && index < count) return list.devices[static_cast<size_t>(index)];
  refuse(MS_UNAVAILABLE, "no such device: expected an index below " + std::to_string(count) + ", got " + std::to_string(index));
}

// What the driver calls free on a GPU. A GPU that nobody has opened gets its primary context for this question only.
uint64_t free_on_gpu(Gpu &gpu) {
  const std::lock_guard lock(gpu.opening);
  CUcontext context = gpu.context;
  if (context == nullptr) CU_CALL(cuDevicePrimaryCtxRetain, &context, gpu.handle);
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  CUresult result = driver().cuCtxSetCurrent(context);
  if (result == CUDA_SUCCESS) result = driver().cuMemGetInfo_v2(&free_bytes, &total_bytes);
  if (gpu.context == nullptr) {
    driver().cuCtxSetCurrent(nullptr);
    driver().cuDevicePrimaryCtxRelease_v2(gpu.handle);
  }
  check(result, "cuMemGetInfo_v2");
  return free_bytes;
}

// A device may still take its part of what is free or taken by its GPU's devices, less what it has taken itself.
uint64_t free_on_device(const Device &device) {
  const DeviceList &list = device_list();
  uint64_t ours = free_on_gpu(*device.gpu);
  for (const Device &other : list.devices) {
    if (other.gpu == device.gpu) ours += other.used_bytes;
  }
  const uint64_t part = ours / static_cast<uint64_t>(list.parts);
  const uint64_t used = device.used_bytes;
  return part > used ? part - used : 0;
}

}  // namespace

DeviceList &device_list() {
  struct Found : DeviceList {
    Found() { find_devices(*this); }
  };
  static Found *const found = new Found;  // never destroyed, as the driver
  return *found;
}

void open_gpu(Gpu &gpu) {
  const std::lock_guard lock(gpu.opening);
  if (gpu.context == nullptr) CU_CALL(cuDevicePrimaryCtxRetain, &gpu.context, gpu.handle);
}

void make_current(const Gpu &gpu) { CU_CALL(cuCtxSetCurrent, gpu.context); }

int device_count(int32_t *count, ms_error *error) {
  return guarded(error, [&] { *count = static_cast<int32_t>(device_list().devices.size()); });
}

int device_info(int32_t index, ms_device_info *info, ms_error *error) {
  return guarded(error, [&] {
    const Device &device = device_at(index);
    const Gpu &gpu = *device.gpu;
    const int32_t parts = device_list().parts;
    *info = {};
    if (parts == 1) {
      std::snprintf(info->name, sizeof info->name, "%s", gpu.name.c_str());
    } else {
      std::snprintf(info->name, sizeof info->name, "%.100s (part %d of %d)", gpu.name.c_str(), device.part + 1, parts);
    }
    info->total_bytes = device.share_bytes;
    info->free_bytes = std::min(device.share_bytes, free_on_device(device));
    info->emulated = driver().emulated ? 1 : 0;
    info->compute_major = gpu.compute_major;
    info->compute_minor = gpu.compute_minor;
  });
}

int context_open(int32_t index, ms_context **context, ms_error *error) {
  return guarded(error, [&] {
    Device &device = device_at(index);
    open_gpu(*device.gpu);
    *context = new ms_context{device};
  });
}

void context_close(ms_context *context) { delete context; }

}  // namespace metashard::cuda
