// The entry points of memory and copies. A copy between a device and pinned host memory reads and writes it when the stream
// comes to it; pageable memory is read before the call returns, or written before it does. Copies run under a fault guard: host
// memory that is gone by then costs the device, not the process.
#include <sys/mman.h>

#include <cstring>

#include "../runtime/fault_guard.h"
#include "driver.h"

namespace metashard::emulator {

Device *Driver::holder(uintptr_t address, size_t bytes) {
  for (Device &device : devices) {
    if (device.memory.holds(address, bytes)) return &device;
  }
  return nullptr;
}

bool Driver::is_pinned(const void *address, size_t bytes) const {
  const auto first = reinterpret_cast<uintptr_t>(address);
  const auto after = pinned.upper_bound(first);
  if (after == pinned.begin()) return false;
  const auto &[start, length] = *std::prev(after);
  return first - start <= length && bytes <= length - (first - start);
}

namespace {

std::string address_text(CUdeviceptr address, size_t bytes) {
  char text[64];
  std::snprintf(text, sizeof text, "%zu bytes at 0x%llx", bytes, address);
  return text;
}

CUresult not_held(const char *what, CUdeviceptr address, size_t bytes) {
  return refuse(CUDA_ERROR_INVALID_VALUE,
                std::string(what) + ": no allocation of an emulated device holds " + address_text(address, bytes));
}

// Runs a copy or fill; what it may not touch becomes the device's error.
template <class Body>
Outcome guarded_copy(const char *what, Body &&body) {
  FaultGuard guard;
  if (guarded_run(guard, body)) return {};
  char text[128];
  std::snprintf(text, sizeof text, "%s: accesses %p, where no memory is any more", what, guard.address);
  return {CUDA_ERROR_ILLEGAL_ADDRESS, text};
}

Work copy_work(const char *what, void *destination, const void *source, size_t bytes) {
  return [=] { return guarded_copy(what, [=] { std::memcpy(destination, source, bytes); }); };
}

CUresult no_pageable_capture(Stream &stream, const char *what) {
  stream.capture->invalidated = true;
  return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, std::string(what) + ": pageable host memory cannot be captured");
}

}  // namespace

MS_ENTRY cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
  return on_device([&](auto &, auto &, Device &device) {
    *free_bytes = device.memory.budget() - device.memory.used();
    *total_bytes = device.memory.budget();
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    if (bytes == 0) return refuse(CUDA_ERROR_INVALID_VALUE, "cuMemAlloc of 0 bytes");
    if (const CUresult refused = driver.check_no_capture("cuMemAlloc"); refused != CUDA_SUCCESS) return refused;
    *pointer = device.memory.allocate(bytes);
    if (*pointer != 0) return CUDA_SUCCESS;
    const uint64_t left = device.memory.budget() - device.memory.used();
    return refuse(CUDA_ERROR_OUT_OF_MEMORY, std::to_string(bytes) + " bytes asked, " + std::to_string(left) + " of " +
                                                std::to_string(device.memory.budget()) + " left on emulated device " +
                                                std::to_string(device.ordinal));
  });
}

MS_ENTRY cuMemFree_v2(CUdeviceptr pointer) {
  return on_device([&](Driver &driver, auto &lock, Device &) {
    if (pointer == 0) return CUDA_SUCCESS;
    if (const CUresult refused = driver.check_no_capture("cuMemFree"); refused != CUDA_SUCCESS) return refused;
    Device *owner = driver.holder(pointer, 0);
    if (owner == nullptr) return not_held("cuMemFree", pointer, 0);
    driver.wait(lock, *owner);  // the real one, too, lets the device's work end first
    return owner->memory.free(pointer) ? CUDA_SUCCESS : not_held("cuMemFree", pointer, 0);
  });
}

MS_ENTRY cuMemHostAlloc(void **pointer, size_t bytes, unsigned int) {
  return on_device([&](Driver &driver, auto &, Device &) {
    if (bytes == 0) return refuse(CUDA_ERROR_INVALID_VALUE, "cuMemHostAlloc of 0 bytes");
    if (const CUresult refused = driver.check_no_capture("cuMemHostAlloc"); refused != CUDA_SUCCESS) return refused;
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return refuse(CUDA_ERROR_OUT_OF_MEMORY, "host memory is exhausted");
    driver.pinned.emplace(reinterpret_cast<uintptr_t>(memory), bytes);
    *pointer = memory;
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuMemFreeHost(void *pointer) {
  return on_device([&](Driver &driver, auto &, Device &) {
    if (const CUresult refused = driver.check_no_capture("cuMemFreeHost"); refused != CUDA_SUCCESS) return refused;
    const auto found = driver.pinned.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == driver.pinned.end()) return refuse(CUDA_ERROR_INVALID_VALUE, "cuMemFreeHost: no such pinned memory");
    munmap(pointer, found->second);
    driver.pinned.erase(found);
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuMemcpyHtoDAsync_v2(CUdeviceptr destination, const void *source, size_t bytes, CUstream handle) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    CUresult status = CUDA_SUCCESS;
    const auto stream = driver.stream_of(device, handle, status);
    if (stream == nullptr) return status;
    if (driver.holder(destination, bytes) == nullptr) return not_held("cuMemcpyHtoDAsync", destination, bytes);
    void *to = reinterpret_cast<void *>(destination);
    if (driver.is_pinned(source, bytes)) {
      return driver.submit(*stream, {copy_work("copy from pinned memory", to, source, bytes), {}, {}});
    }
    if (stream->capture != nullptr) return no_pageable_capture(*stream, "cuMemcpyHtoDAsync");
    const auto *first = static_cast<const unsigned char *>(source);
    const auto staged = std::make_shared<std::vector<unsigned char>>(first, first + bytes);
    return driver.submit(*stream, {[=] {
                                     std::memcpy(to, staged->data(), staged->size());
                                     return Outcome{};
                                   },
                                   {}, {}});
  });
}

MS_ENTRY cuMemcpyDtoHAsync_v2(void *destination, CUdeviceptr source, size_t bytes, CUstream handle) {
  return on_device([&](Driver &driver, auto &lock, Device &device) {
    CUresult status = CUDA_SUCCESS;
    const auto stream = driver.stream_of(device, handle, status);
    if (stream == nullptr) return status;
    if (driver.holder(source, bytes) == nullptr) return not_held("cuMemcpyDtoHAsync", source, bytes);
    Work work = copy_work("copy to host memory", destination, reinterpret_cast<const void *>(source), bytes);
    if (driver.is_pinned(destination, bytes)) return driver.submit(*stream, {std::move(work), {}, {}});
    if (stream->capture != nullptr) return no_pageable_capture(*stream, "cuMemcpyDtoHAsync");
    const auto done = std::make_shared<Point>();
    status = driver.submit(*stream, {std::move(work), {}, done});
    if (status != CUDA_SUCCESS) return status;
    driver.wait(lock, done);
    return state_of(device);
  });
}

MS_ENTRY cuMemcpyDtoDAsync_v2(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream handle) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    CUresult status = CUDA_SUCCESS;
    const auto stream = driver.stream_of(device, handle, status);
    if (stream == nullptr) return status;
    if (driver.holder(destination, bytes) == nullptr) return not_held("cuMemcpyDtoDAsync", destination, bytes);
    if (driver.holder(source, bytes) == nullptr) return not_held("cuMemcpyDtoDAsync", source, bytes);
    return driver.submit(*stream, {copy_work("copy on the device", reinterpret_cast<void *>(destination),
                                             reinterpret_cast<const void *>(source), bytes),
                                   {}, {}});
  });
}

MS_ENTRY cuMemcpyPeerAsync(CUdeviceptr destination, CUcontext destination_context, CUdeviceptr source, CUcontext source_context,
                           size_t bytes, CUstream handle) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    CUresult status = CUDA_SUCCESS;
    const auto stream = driver.stream_of(device, handle, status);
    if (stream == nullptr) return status;
    const auto holds = [&](CUdeviceptr address, CUcontext context) {
      const Device *owner = driver.holder(address, bytes);
      return owner != nullptr && reinterpret_cast<CUcontext>(const_cast<Device *>(owner)) == context;
    };
    if (!holds(destination, destination_context)) return not_held("cuMemcpyPeerAsync", destination, bytes);
    if (!holds(source, source_context)) return not_held("cuMemcpyPeerAsync", source, bytes);
    return driver.submit(*stream, {copy_work("copy between devices", reinterpret_cast<void *>(destination),
                                             reinterpret_cast<const void *>(source), bytes),
                                   {}, {}});
  });
}

MS_ENTRY cuMemsetD8Async(CUdeviceptr pointer, unsigned char value, size_t bytes, CUstream handle) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    CUresult status = CUDA_SUCCESS;
    const auto stream = driver.stream_of(device, handle, status);
    if (stream == nullptr) return status;
    if (driver.holder(pointer, bytes) == nullptr) return not_held("cuMemsetD8Async", pointer, bytes);
    void *to = reinterpret_cast<void *>(pointer);
    return driver.submit(*stream, {[=] { return guarded_copy("memset", [=] { std::memset(to, value, bytes); }); }, {}, {}});
  });
}

}  // namespace metashard::emulator
