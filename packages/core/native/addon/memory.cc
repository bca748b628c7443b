// Contexts, buffers, budgets.
#include "memory.h"

#include <algorithm>
#include <cstdlib>

#include "functions.h"
#include "mapped_file.h"
#include "op_call.h"
#include "program.h"
#include "weight_feed.h"

namespace metashard {

// The tables are never destroyed: worker threads may still run while the process exits.
IdTable<Context, IdKind::context> &contexts() {
  static auto &table = *new IdTable<Context, IdKind::context>;
  return table;
}

IdTable<Buffer, IdKind::buffer> &buffers() {
  static auto &table = *new IdTable<Buffer, IdKind::buffer>;
  return table;
}

void check_range(const char *what, uint64_t offset, uint64_t bytes, uint64_t available) {
  if (offset > available || bytes > available - offset) {
    MS_REFUSE("%s: expected a range within its %llu bytes, got %llu bytes at offset %llu", what,
              static_cast<unsigned long long>(available), static_cast<unsigned long long>(bytes),
              static_cast<unsigned long long>(offset));
  }
}

void Accounting::take(uint64_t bytes, int kind) {
  const std::lock_guard lock(mutex_);
  if (budget_ != 0 && (current_ > budget_ || bytes > budget_ - current_)) {
    MS_FAIL(MS_OUT_OF_MEMORY, "budget: expected at most %llu of %llu bytes, got %llu",
            static_cast<unsigned long long>(current_ > budget_ ? 0 : budget_ - current_),
            static_cast<unsigned long long>(budget_), static_cast<unsigned long long>(bytes));
  }
  current_ += bytes;
  current_by_kind_[kind] += bytes;
  peak_ = std::max(peak_, current_);
  peak_by_kind_[kind] = std::max(peak_by_kind_[kind], current_by_kind_[kind]);
}

void Accounting::give_back(uint64_t bytes, int kind) {
  const std::lock_guard lock(mutex_);
  current_ -= bytes;
  current_by_kind_[kind] -= bytes;
}

Accounting::Snapshot Accounting::snapshot() const {
  const std::lock_guard lock(mutex_);
  return {budget_, current_, peak_, current_by_kind_, peak_by_kind_};
}

void *GrowingMemory::reserve(Context &context, size_t bytes, Place place) {
  if (data_ != nullptr && bytes <= bytes_ && place == place_) return data_;
  release(context);
  const size_t rounded = (std::max<size_t>(bytes, 1) + 4095) / 4096 * 4096;
  if (place == Place::host) {
    data_ = std::aligned_alloc(4096, rounded);
    if (data_ == nullptr) MS_FAIL(MS_OUT_OF_MEMORY, "window: expected %zu bytes of host memory, got none", rounded);
  } else if (place == Place::pinned) {
    data_ = context.allocate(rounded, MS_MEMORY_PINNED);
  } else {
    context.accounting.take(rounded, kMemoryScratch);
    try {
      data_ = context.allocate(rounded, MS_MEMORY_DEVICE);
    } catch (...) {
      context.accounting.give_back(rounded, kMemoryScratch);
      throw;
    }
  }
  bytes_ = rounded;
  place_ = place;
  return data_;
}

void GrowingMemory::release(Context &context) noexcept {
  if (data_ == nullptr) return;
  if (place_ == Place::host) {
    std::free(data_);
  } else {
    context.deallocate(data_, bytes_, place_ == Place::pinned ? MS_MEMORY_PINNED : MS_MEMORY_DEVICE);
    if (place_ == Place::device) context.accounting.give_back(bytes_, kMemoryScratch);
  }
  data_ = nullptr;
  bytes_ = 0;
}

void LoadingMemory::release(Context &context) noexcept {
  for (GrowingMemory *memory : {&windows[0], &windows[1], &staging, &scratch}) memory->release(context);
  idle_windows.clear();
}

Context::Context(const Backend &backend, int32_t device, uint64_t budget)
    : backend(backend), device(device), accounting(budget) {
  ms_error error{};
  check(api().device_info(device, &info, &error), error);
  check(api().context_open(device, &handle, &error), error);
  for (int32_t op = 0; op <= kMaxOpCode; op++) {
    if (find_op(op) != nullptr) supported_ops[op] = api().op_supported(handle, op) != 0;
  }
  const int status = api().stream_create(handle, &stream, &error);
  if (status == MS_OK) return;
  api().context_close(handle);
  check(status, error);
}

Context::~Context() {
  ms_error ignored{};
  api().stream_synchronize(handle, stream, &ignored);
  loading.release(*this);
  api().stream_destroy(handle, stream);
  api().context_close(handle);
}

void Context::wait() {
  ms_error error{};
  check(api().stream_synchronize(handle, stream, &error), error);
}

void *Context::allocate(size_t bytes, ms_memory_kind kind) {
  ms_error error{};
  void *data = nullptr;
  check(api().memory_allocate(handle, bytes, kind, &data, &error), error);
  if (data == nullptr) MS_FAIL(MS_INTERNAL, "backend %s: expected memory, got a null pointer", backend.name.c_str());
  return data;
}

// Work that still uses the memory may be under way: it is waited for. Errors are the next call's to report.
void Context::deallocate(void *data, size_t bytes, ms_memory_kind kind) noexcept {
  ms_error ignored{};
  if (!host_addressable()) api().stream_synchronize(handle, stream, &ignored);
  api().memory_free(handle, data, bytes, kind, &ignored);
}

void Context::own_buffer(double id) {
  const std::lock_guard lock(owned_mutex_);
  if (closed_) MS_REFUSE("context: expected an open one, got one that was closed meanwhile");
  buffers_.insert(id);
}

void Context::own_program(double id) {
  const std::lock_guard lock(owned_mutex_);
  if (closed_) MS_REFUSE("context: expected an open one, got one that was closed meanwhile");
  programs_.insert(id);
}

void Context::own_feed(double id) {
  const std::lock_guard lock(owned_mutex_);
  if (closed_) MS_REFUSE("context: expected an open one, got one that was closed meanwhile");
  feeds_.insert(id);
}

void Context::disown(double id) {
  const std::lock_guard lock(owned_mutex_);
  if (buffers_.erase(id) == 0) programs_.erase(id);
}

void Context::close() {
  std::unordered_set<double> owned_buffers, owned_programs, owned_feeds;
  {
    const std::lock_guard lock(owned_mutex_);
    closed_ = true;
    owned_buffers.swap(buffers_);
    owned_programs.swap(programs_);
    owned_feeds.swap(feeds_);
  }
  for (const double id : owned_feeds) feeds().remove(id);
  for (const double id : owned_programs) programs().remove(id);
  for (const double id : owned_buffers) buffers().remove(id);
}

Buffer::Buffer(ContextRef owner, size_t bytes, int kind) : context(std::move(owner)), bytes(bytes), kind(kind) {
  allocate(*context, MS_MEMORY_DEVICE);
}

Buffer::Buffer(ContextRef owner, ContextRef copies, size_t bytes, int kind)
    : context(std::move(owner)), bytes(bytes), kind(kind), copier(std::move(copies)) {
  allocate(*copier, MS_MEMORY_PINNED);
}

void Buffer::allocate(Context &giver, ms_memory_kind memory) {
  context->accounting.take(bytes, kind);
  try {
    const std::lock_guard lock(giver.in_use);
    data = static_cast<std::byte *>(giver.allocate(std::max<size_t>(bytes, 1), memory));
  } catch (...) {
    context->accounting.give_back(bytes, kind);
    throw;
  }
}

Buffer::Buffer(ContextRef owner, std::shared_ptr<Mapping> mapped, size_t bytes, int kind)
    : context(std::move(owner)), bytes(bytes), kind(kind), mapping(std::move(mapped)), data(mapping->data()) {
  if (kind >= 0) context->accounting.take(bytes, kind);
}

Buffer::~Buffer() {
  if (copier != nullptr) {
    const std::lock_guard lock(copier->in_use);
    copier->deallocate(data, std::max<size_t>(bytes, 1), MS_MEMORY_PINNED);
  } else if (mapping == nullptr) {
    const std::lock_guard lock(context->in_use);
    context->deallocate(data, std::max<size_t>(bytes, 1), MS_MEMORY_DEVICE);
  }
  if (kind >= 0) context->accounting.give_back(bytes, kind);
}

namespace exported {

napi_value open_context(Call &call) {
  const Backend &backend = backend_named(call.text(0, "backend"));
  const auto device = static_cast<int32_t>(call.integer(1, "device", 0, INT32_MAX));
  const int64_t budget = call.size(2, "budgetBytes");
  const double id = contexts().insert(std::make_shared<Context>(backend, device, static_cast<uint64_t>(budget)));
  call.environment().contexts.insert(id);
  return call.number(id);
}

napi_value close_context(Call &call) {
  const double id = call.id(0, "context");
  contexts().take(id, "context")->close();
  call.environment().contexts.erase(id);
  return nullptr;
}

napi_value context_stats(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  const Accounting::Snapshot now = context->accounting.snapshot();
  const napi_value current = call.array(kMemoryKinds), peak = call.array(kMemoryKinds), result = call.object();
  for (uint32_t kind = 0; kind < kMemoryKinds; kind++) {
    call.set_at(current, kind, call.number(static_cast<double>(now.current_by_kind[kind])));
    call.set_at(peak, kind, call.number(static_cast<double>(now.peak_by_kind[kind])));
  }
  call.set(result, "budgetBytes", call.number(static_cast<double>(now.budget)));
  call.set(result, "currentBytes", call.number(static_cast<double>(now.current)));
  call.set(result, "peakBytes", call.number(static_cast<double>(now.peak)));
  call.set(result, "current", current);
  call.set(result, "peak", peak);
  return result;
}

napi_value synchronize(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  const std::lock_guard lock(context->in_use);
  context->wait();
  return nullptr;
}

napi_value alloc(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  const auto bytes = static_cast<size_t>(call.size(1, "bytes"));
  const int kind = static_cast<int>(call.integer(2, "kind", 0, kMemoryKinds - 1));
  const double id = buffers().insert(std::make_shared<Buffer>(context, bytes, kind));
  try {
    context->own_buffer(id);
  } catch (...) {
    buffers().remove(id);
    throw;
  }
  return call.number(id);
}

napi_value alloc_pinned(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  const ContextRef copier = contexts().get(call.id(1, "copier"), "context");
  if (!context->host_addressable()) MS_REFUSE("allocPinned: expected a device that reads host memory");
  const auto bytes = static_cast<size_t>(call.size(2, "bytes"));
  const int kind = static_cast<int>(call.integer(3, "kind", 0, kMemoryKinds - 1));
  const double id = buffers().insert(std::make_shared<Buffer>(context, copier, bytes, kind));
  try {
    context->own_buffer(id);
  } catch (...) {
    buffers().remove(id);
    throw;
  }
  return call.number(id);
}

napi_value free(Call &call) {
  const double id = call.id(0, "buffer");
  const BufferRef buffer = buffers().take(id, "buffer");
  buffer->context->disown(id);
  return nullptr;
}

napi_value buffer_bytes(Call &call) {
  return call.number(static_cast<double>(buffers().get(call.id(0, "buffer"), "buffer")->bytes));
}

}  // namespace exported
}  // namespace metashard
