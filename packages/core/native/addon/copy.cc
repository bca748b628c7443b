// Moving bytes: between JavaScript and buffers, and between buffers of any two contexts. Each function is done when it returns,
// except `zero`, which is ordered before later work of its context.
#include <algorithm>
#include <cstring>
#include <vector>

#include "functions.h"
#include "mapped_file.h"
#include "memory.h"

namespace metashard {
namespace {

constexpr size_t kStagingBytes = size_t{4} << 20;

// Device memory from host memory. Call under in_use.
void copy_from_host(Context &context, void *device, const void *host, size_t bytes) {
  ms_error error{};
  check(context.api().copy_to_device(context.handle, context.stream, device, host, bytes, &error), error);
  context.wait();
}

// Host memory from device memory, after the work enqueued so far. Call under in_use.
void copy_from_device(Context &context, void *host, const void *device, size_t bytes) {
  ms_error error{};
  check(context.api().copy_to_host(context.handle, context.stream, host, device, bytes, &error), error);
  context.wait();
}

// Neither device's memory is host memory, and they belong to different backends.
void copy_through_host(Buffer &destination, std::byte *to, Buffer &source, const std::byte *from, size_t bytes) {
  std::vector<std::byte> staging(std::min(bytes, kStagingBytes));
  for (size_t done = 0; done < bytes; done += staging.size()) {
    const size_t part = std::min(staging.size(), bytes - done);
    {
      const std::lock_guard lock(source.context->in_use);
      copy_from_device(*source.context, staging.data(), from + done, part);
    }
    const std::lock_guard lock(destination.context->in_use);
    copy_from_host(*destination.context, to + done, staging.data(), part);
  }
}

void copy_within_backend(Buffer &destination, std::byte *to, Buffer &source, const std::byte *from, size_t bytes) {
  Context &target = *destination.context, &origin = *source.context;
  std::unique_lock target_lock(target.in_use, std::defer_lock), origin_lock(origin.in_use, std::defer_lock);
  if (&target == &origin) {
    if (to < from + bytes && from < to + bytes) MS_REFUSE("copy: expected ranges that do not overlap");
    origin_lock.lock();
  } else {
    std::lock(target_lock, origin_lock);
    target.wait();  // earlier work there may still use the destination; the copy runs on the source's stream
  }
  ms_error error{};
  check(origin.api().copy_between_devices(target.handle, to, origin.handle, from, bytes, origin.stream, &error), error);
  origin.wait();
}

void copy_bytes(Buffer &destination, std::byte *to, Buffer &source, const std::byte *from, size_t bytes) {
  Context &target = *destination.context, &origin = *source.context;
  if (target.host_addressable() && origin.host_addressable()) {
    std::memmove(to, from, bytes);
    check_mappings();
  } else if (&target.backend == &origin.backend) {
    copy_within_backend(destination, to, source, from, bytes);
  } else if (target.host_addressable()) {
    const std::lock_guard lock(origin.in_use);
    copy_from_device(origin, to, from, bytes);
  } else if (origin.host_addressable()) {
    const std::lock_guard lock(target.in_use);
    copy_from_host(target, to, from, bytes);
  } else {
    copy_through_host(destination, to, source, from, bytes);
  }
}

}  // namespace

namespace exported {

napi_value write(Call &call) {
  const BufferRef buffer = buffers().get(call.id(0, "buffer"), "buffer");
  const auto offset = static_cast<size_t>(call.size(1, "offset"));
  const auto source = call.bytes(2, "source");
  check_range("buffer", offset, source.size(), buffer->bytes);
  if (source.empty()) return nullptr;
  if (buffer->context->host_addressable()) {
    std::memcpy(buffer->data + offset, source.data(), source.size());
    return nullptr;
  }
  const std::lock_guard lock(buffer->context->in_use);
  copy_from_host(*buffer->context, buffer->data + offset, source.data(), source.size());
  return nullptr;
}

napi_value read(Call &call) {
  const BufferRef buffer = buffers().get(call.id(0, "buffer"), "buffer");
  const auto offset = static_cast<size_t>(call.size(1, "offset"));
  const auto destination = call.bytes(2, "destination");
  check_range("buffer", offset, destination.size(), buffer->bytes);
  if (destination.empty()) return nullptr;
  if (buffer->context->host_addressable()) {
    std::memcpy(destination.data(), buffer->data + offset, destination.size());
    check_mappings();
    return nullptr;
  }
  const std::lock_guard lock(buffer->context->in_use);
  copy_from_device(*buffer->context, destination.data(), buffer->data + offset, destination.size());
  return nullptr;
}

napi_value zero(Call &call) {
  const BufferRef buffer = buffers().get(call.id(0, "buffer"), "buffer");
  const auto offset = static_cast<size_t>(call.size(1, "offset"));
  const auto bytes = static_cast<size_t>(call.size(2, "bytes"));
  check_range("buffer", offset, bytes, buffer->bytes);
  if (bytes == 0) return nullptr;
  if (buffer->mapping != nullptr) {  // not the backend's memory
    std::memset(buffer->data + offset, 0, bytes);
    return nullptr;
  }
  Context &context = *buffer->context;
  const std::lock_guard lock(context.in_use);
  ms_error error{};
  check(context.api().memory_zero(context.handle, context.stream, buffer->data + offset, bytes, &error), error);
  return nullptr;
}

napi_value copy(Call &call) {
  const BufferRef destination = buffers().get(call.id(0, "destination"), "destination");
  const auto destination_offset = static_cast<size_t>(call.size(1, "destinationOffset"));
  const BufferRef source = buffers().get(call.id(2, "source"), "source");
  const auto source_offset = static_cast<size_t>(call.size(3, "sourceOffset"));
  const auto bytes = static_cast<size_t>(call.size(4, "bytes"));
  check_range("destination", destination_offset, bytes, destination->bytes);
  check_range("source", source_offset, bytes, source->bytes);
  if (bytes == 0) return nullptr;
  copy_bytes(*destination, destination->data + destination_offset, *source, source->data + source_offset, bytes);
  return nullptr;
}

}  // namespace exported
}  // namespace metashard
