// Contexts (a device as one thread uses it) and buffers (its memory), their ids, budgets and accounting.
//
// Lifetimes. A buffer keeps its context alive, a program its buffers; freeing an id only takes it out of its table. So closing
// a context or freeing a buffer while another thread still works on it is harmless: the memory goes when the last user is done.
// Locks. `Context::in_use` is held for every backend call on the context, because a backend may rely on one thread at a time.
// References are always taken before and dropped after it: what their end frees locks the same mutex.
// A host-addressable device is taken to be synchronous: its memory is read and written in place, without that lock.
#pragma once
#include <array>
#include <bitset>
#include <cstddef>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "id_table.h"
#include "registry.h"

namespace metashard {

// MEMORY_KINDS of native.ts: weights, kv_cache, activations, scratch, other.
constexpr int kMemoryKinds = 5;
constexpr int kMemoryScratch = 3;

constexpr int32_t kMaxOpCode = 255;

// Bytes taken on one context against its budget. Any thread may ask.
class Accounting {
 public:
  explicit Accounting(uint64_t budget) : budget_(budget) {}

  // Throws MS_OUT_OF_MEMORY beyond the budget.
  void take(uint64_t bytes, int kind);
  void give_back(uint64_t bytes, int kind);

  struct Snapshot {
    uint64_t budget, current, peak;
    std::array<uint64_t, kMemoryKinds> current_by_kind, peak_by_kind;
  };
  Snapshot snapshot() const;

 private:
  mutable std::mutex mutex_;
  const uint64_t budget_;  // 0: unlimited
  uint64_t current_ = 0, peak_ = 0;
  std::array<uint64_t, kMemoryKinds> current_by_kind_{}, peak_by_kind_{};
};

class Context;

// Memory that a context keeps for loading weights; it only grows, and goes with the context. Used under `in_use`.
class GrowingMemory {
 public:
  enum class Place { host, pinned, device };
  // At least `bytes` bytes, contents undefined. Device memory is counted as scratch.
  void *reserve(Context &context, size_t bytes, Place place);
  void release(Context &context) noexcept;

 private:
  void *data_ = nullptr;
  size_t bytes_ = 0;
  Place place_ = Place::host;
};

struct LoadingMemory {
  GrowingMemory windows[2];
  GrowingMemory staging;
  GrowingMemory scratch;
  // Windows of the threads of a backend that has some, those at work excepted. Any of these threads takes one, and puts it back.
  std::vector<std::vector<std::byte>> idle_windows;
  std::mutex idle_mutex;
  // Not while weights are loaded.
  void release(Context &context) noexcept;
};

class Context {
 public:
  Context(const Backend &backend, int32_t device, uint64_t budget);
  ~Context();
  Context(const Context &) = delete;
  Context &operator=(const Context &) = delete;

  const ms_backend_v1 &api() const { return backend.api; }
  bool host_addressable() const { return info.host_addressable != 0; }
  bool supports(int32_t op) const { return supported_ops[static_cast<size_t>(op)]; }
  // Waits for all work of the stream. Call under in_use.
  void wait();
  void *allocate(size_t bytes, ms_memory_kind kind);
  void deallocate(void *data, size_t bytes, ms_memory_kind kind) noexcept;

  // Remembers an id that closing this context frees. Throws once it was closed.
  void own_buffer(double id);
  void own_program(double id);
  void own_feed(double id);
  void disown(double id);
  // Frees everything owned, and refuses to own more.
  void close();

  const Backend &backend;
  const int32_t device;
  ms_device_info info{};
  std::bitset<kMaxOpCode + 1> supported_ops;
  ms_context *handle = nullptr;
  ms_stream *stream = nullptr;
  std::mutex in_use;
  Accounting accounting;
  LoadingMemory loading;

 private:
  std::mutex owned_mutex_;
  bool closed_ = false;
  std::unordered_set<double> buffers_;
  std::unordered_set<double> programs_;
  std::unordered_set<double> feeds_;
};

class Mapping;

class Buffer {
 public:
  // Takes the bytes against the budget and allocates them. Throws MS_OUT_OF_MEMORY.
  Buffer(std::shared_ptr<Context> context, size_t bytes, int kind);
  // Host memory of a host-addressable context, from which `copier`'s device copies asynchronously. Throws MS_OUT_OF_MEMORY.
  Buffer(std::shared_ptr<Context> context, std::shared_ptr<Context> copier, size_t bytes, int kind);
  // Memory of a mapped file. kind -1: not counted. Throws MS_OUT_OF_MEMORY.
  Buffer(std::shared_ptr<Context> context, std::shared_ptr<Mapping> mapping, size_t bytes, int kind);
  ~Buffer();
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;

  const std::shared_ptr<Context> context;
  const size_t bytes;
  const int kind;
  const std::shared_ptr<Context> copier;   // null where the memory is not pinned for another device
  const std::shared_ptr<Mapping> mapping;  // null for device memory
  std::byte *data = nullptr;  // never null, also for 0 bytes

 private:
  // Counts the bytes to `context` and takes them from `giver`. Throws MS_OUT_OF_MEMORY.
  void allocate(Context &giver, ms_memory_kind memory);
};

using ContextRef = std::shared_ptr<Context>;
using BufferRef = std::shared_ptr<Buffer>;

IdTable<Context, IdKind::context> &contexts();
IdTable<Buffer, IdKind::buffer> &buffers();

// Throws unless offset … offset + bytes lies within `available` bytes. `what` names the thing.
void check_range(const char *what, uint64_t offset, uint64_t bytes, uint64_t available);

}  // namespace metashard
