// The slots of memory and copies. Copies are asynchronous from and to pinned host memory; with pageable memory the driver
// itself waits until it has read or written it. Empty copies and fills do nothing.
#include "slots.h"
#include "stream.h"

namespace metashard::cuda {

namespace {

CUdeviceptr address(const void *pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

// The driver refuses empty allocations; the addon may want a pointer for an empty tensor.
size_t driver_bytes(size_t bytes) { return bytes == 0 ? 1 : bytes; }

// Counts `bytes` against the device's share, which holds also where the GPU has more: virtual devices have hard budgets.
void reserve(Device &device, size_t bytes) {
  const uint64_t used = device.used_bytes.fetch_add(bytes);
  if (used <= device.share_bytes && bytes <= device.share_bytes - used) return;
  device.used_bytes -= bytes;
  const uint64_t left = used < device.share_bytes ? device.share_bytes - used : 0;
  refuse(MS_OUT_OF_MEMORY, "expected at most " + size_text(left) + ", what is left of the device's " +
                               size_text(device.share_bytes) + ", got " + size_text(bytes));
}

void *allocate_on_device(Device &device, size_t bytes) {
  reserve(device, bytes);
  CUdeviceptr pointer = 0;
  const CUresult result = driver().cuMemAlloc_v2(&pointer, bytes);
  if (result != CUDA_SUCCESS) device.used_bytes -= bytes;
  check(result, "cuMemAlloc_v2 of " + size_text(bytes));
  return reinterpret_cast<void *>(pointer);
}

void *allocate_pinned(size_t bytes) {
  void *pointer = nullptr;
  check(driver().cuMemHostAlloc(&pointer, bytes, host_alloc_portable), "cuMemHostAlloc of " + size_text(bytes));
  return pointer;
}

}  // namespace

int memory_allocate(ms_context *context, size_t bytes, ms_memory_kind kind, void **pointer, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    const size_t taken = driver_bytes(bytes);
    *pointer = kind == MS_MEMORY_PINNED ? allocate_pinned(taken) : allocate_on_device(context->device, taken);
  });
}

int memory_free(ms_context *context, void *pointer, size_t bytes, ms_memory_kind kind, ms_error *error) {
  return guarded(error, [&] {
    enter(context);
    if (kind == MS_MEMORY_PINNED) {
      CU_CALL(cuMemFreeHost, pointer);
    } else {
      CU_CALL(cuMemFree_v2, address(pointer));
      context->device.used_bytes -= driver_bytes(bytes);
    }
  });
}

int memory_zero(ms_context *context, ms_stream *stream, void *pointer, size_t bytes, ms_error *error) {
  return guarded(error, [&] {
    if (bytes == 0) return;
    enter(context);
    CU_CALL(cuMemsetD8Async, address(pointer), 0, bytes, stream->handle);
  });
}

int copy_to_device(ms_context *context, ms_stream *stream, void *device, const void *host, size_t bytes, ms_error *error) {
  return guarded(error, [&] {
    if (bytes == 0) return;
    enter(context);
    CU_CALL(cuMemcpyHtoDAsync_v2, address(device), host, bytes, stream->handle);
  });
}

int copy_to_host(ms_context *context, ms_stream *stream, void *host, const void *device, size_t bytes, ms_error *error) {
  return guarded(error, [&] {
    if (bytes == 0) return;
    enter(context);
    CU_CALL(cuMemcpyDtoHAsync_v2, host, address(device), bytes, stream->handle);
  });
}

int copy_between_devices(ms_context *destination_context, void *destination, ms_context *source_context, const void *source,
                         size_t bytes, ms_stream *stream, ms_error *error) {
  return guarded(error, [&] {
    if (bytes == 0) return;
    Gpu &from = enter(source_context);
    Gpu &to = *destination_context->device.gpu;
    if (&from == &to) {
      CU_CALL(cuMemcpyDtoDAsync_v2, address(destination), address(source), bytes, stream->handle);
    } else if (peer_link(from, to) == PeerLink::direct) {
      CU_CALL(cuMemcpyPeerAsync, address(destination), to.context, address(source), from.context, bytes, stream->handle);
    } else {
      copy_staged(*stream, from, address(source), to, address(destination), bytes);
    }
  });
}

}  // namespace metashard::cuda
