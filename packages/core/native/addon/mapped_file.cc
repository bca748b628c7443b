// Mappings, the SIGBUS handler that watches over them, and the functions that JavaScript uses them by.
#include "mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "functions.h"
#include "memory.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace metashard {
namespace {

// What the signal handler may read: address ranges of live mappings, without locks.
struct Watched {
  std::atomic<uintptr_t> begin{0}, end{0};
  std::atomic<uintptr_t> failed{0};  // address of the first page that could not be read
};
constexpr uint64_t kLargestFolio = uint64_t{2} << 20;
constexpr int kMostMappings = 1024;
Watched watched[kMostMappings];
std::atomic<int> failures{0};
struct sigaction previous_action;
const uintptr_t page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));

void on_bus_error(int signal, siginfo_t *info, void *context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Watched &one : watched) {
    if (address < one.begin.load() || address >= one.end.load()) continue;
    void *page = reinterpret_cast<void *>(address / page_bytes * page_bytes);
    if (mmap(page, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) break;
    uintptr_t none = 0;
    if (one.failed.compare_exchange_strong(none, address)) failures.fetch_add(1);
    return;
  }
  // Not ours: as if we had not been here.
  if (previous_action.sa_flags & SA_SIGINFO && previous_action.sa_sigaction != nullptr) {
    previous_action.sa_sigaction(signal, info, context);
  } else {
    sigaction(SIGBUS, &previous_action, nullptr);
  }
}

void watch_bus_errors() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action{};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_action);
  });
}

std::mutex slots_mutex;
Mapping *mappings[kMostMappings];

int take_slot(Mapping *mapping) {
  const std::lock_guard lock(slots_mutex);
  for (int slot = 0; slot < kMostMappings; slot++) {
    if (mappings[slot] != nullptr) continue;
    mappings[slot] = mapping;
    return slot;
  }
  MS_FAIL(MS_OUT_OF_MEMORY, "mapFile: expected at most %d mappings at once", kMostMappings);
}

// Ranges to bring into memory, in order, by one thread of the process. Never destroyed: it may still read while the process exits.
class Reader {
 public:
  Reader() {
    std::thread([this] { run(); }).detach();
  }
  void add(std::shared_ptr<Mapping> mapping, uint64_t offset, uint64_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back({std::move(mapping), offset, bytes});
    }
    changed_.notify_all();
  }
  // Until nothing of the range is wanted or under way.
  void wait(const Mapping &mapping, uint64_t offset, uint64_t bytes) {
    const auto touches = [&](const Range &one) {
      return one.mapping.get() == &mapping && one.offset < offset + bytes && offset < one.offset + one.bytes;
    };
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !touches(current_) && std::none_of(queue_.begin(), queue_.end(), touches); });
  }

 private:
  struct Range {
    std::shared_ptr<Mapping> mapping;
    uint64_t offset = 0, bytes = 0;
  };
  [[noreturn]] void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return !queue_.empty(); });
      current_ = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      current_.mapping->advise(current_.offset, current_.bytes, Mapping::Advice::populate);
      lock.lock();
      Range done = std::exchange(current_, {});
      changed_.notify_all();
      lock.unlock();
      done.mapping.reset();  // it may end here
      lock.lock();
    }
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Range> queue_;
  Range current_;
};

Reader &reader() {
  static Reader &one = *new Reader;
  return one;
}

}  // namespace

void read_ahead(std::shared_ptr<Mapping> mapping, uint64_t offset, uint64_t bytes) {
  reader().add(std::move(mapping), offset, bytes);
}

void wait_for_read(const Mapping &mapping, uint64_t offset, uint64_t bytes) { reader().wait(mapping, offset, bytes); }

Mapping::Mapping(std::shared_ptr<File> file, uint64_t offset, uint64_t bytes) : file_(std::move(file)), offset_(offset), bytes_(bytes) {
  check_range(file_->path.c_str(), offset, bytes, file_->bytes);
  if (offset % page_bytes != 0) MS_REFUSE("mapFile: expected an offset that %zu divides, got %llu", static_cast<size_t>(page_bytes), static_cast<unsigned long long>(offset));
  watch_bus_errors();
  slot_ = take_slot(this);
  void *at = map(nullptr, 0);
  if (at == MAP_FAILED) {
    const int error = errno;
    const std::lock_guard lock(slots_mutex);
    mappings[slot_] = nullptr;
    fail(MS_IO, error, __FILE__, __LINE__, "%s: cannot be mapped: %s", file_->path.c_str(), std::strerror(error));
  }
  data_ = static_cast<std::byte *>(at);
  Watched &own = watched[slot_];
  own.failed = 0;
  own.end = reinterpret_cast<uintptr_t>(data_) + (bytes + page_bytes - 1) / page_bytes * page_bytes;
  own.begin = reinterpret_cast<uintptr_t>(data_);
}

Mapping::~Mapping() {
  Watched &own = watched[slot_];
  own.begin = own.end = 0;
  munmap(data_, std::max<uint64_t>(bytes_, 1));
  const std::lock_guard lock(slots_mutex);
  mappings[slot_] = nullptr;
}

void *Mapping::map(void *place, int flags) const {
  const size_t length = std::max<uint64_t>(bytes_, 1);
  const int mode = MAP_PRIVATE | MAP_NORESERVE | flags;
  return mmap(place, length, PROT_READ | PROT_WRITE, mode, file_->descriptor(), static_cast<off_t>(offset_));
}

void Mapping::advise(uint64_t offset, uint64_t bytes, Advice advice) const {
  const uint64_t first = offset / page_bytes * page_bytes;
  const size_t length = offset + bytes - first;
  if (advice == Advice::release) {
    madvise(data_ + first, length, MADV_DONTNEED);
    // The cache lets go of whole folios only: the one that the range before began with goes now, else it stays for good and the
    // next read in order stumbles over it. Pages that are mapped stay anyway.
    const uint64_t begin = (offset_ + first) / kLargestFolio * kLargestFolio;
    const uint64_t end = offset_ + first + length;
    posix_fadvise(file_->descriptor(), static_cast<off_t>(begin), static_cast<off_t>(end - begin), POSIX_FADV_DONTNEED);
  } else if (madvise(data_ + first, length, MADV_POPULATE_READ) != 0) {
    madvise(data_ + first, length, MADV_WILLNEED);  // where the kernel does not know the other
  }
}

void check_mappings() {
  if (__builtin_expect(failures.load(std::memory_order_relaxed) == 0, 1)) return;
  const std::lock_guard lock(slots_mutex);
  for (int slot = 0; slot < kMostMappings; slot++) {
    const uintptr_t failed = mappings[slot] == nullptr ? 0 : watched[slot].failed.exchange(0);
    if (failed == 0) continue;
    failures.fetch_sub(1);
    const Mapping &one = *mappings[slot];
    one.map(one.data_, MAP_FIXED);  // the file's pages again in place of the zeros: they may be read once the file is whole
    fail(MS_IO, EIO, __FILE__, __LINE__, "%s: cannot be read at offset %llu: the file was cut short or its disk failed", one.file_->path.c_str(),
         static_cast<unsigned long long>(one.offset_ + failed - reinterpret_cast<uintptr_t>(one.data_)));
  }
  failures = 0;  // of mappings that are gone
}

namespace exported {

napi_value map_file(Call &call) {
  const ContextRef context = contexts().get(call.id(0, "context"), "context");
  const std::shared_ptr<File> file = files().get(call.id(1, "file"), "file");
  const auto offset = static_cast<uint64_t>(call.size(2, "offset"));
  const auto bytes = static_cast<uint64_t>(call.size(3, "bytes"));
  const int64_t kind = call.integer(4, "kind", -1, kMemoryKinds - 1);
  if (!context->host_addressable()) MS_REFUSE("mapFile: expected a device that reads host memory");
  auto buffer = std::make_shared<Buffer>(context, std::make_shared<Mapping>(file, offset, bytes), bytes, static_cast<int>(kind));
  const double id = buffers().insert(std::move(buffer));
  context->own_buffer(id);
  return call.number(id);
}

napi_value advise(Call &call) {
  const BufferRef buffer = buffers().get(call.id(0, "buffer"), "buffer");
  const auto offset = static_cast<uint64_t>(call.size(1, "offset"));
  const auto bytes = static_cast<uint64_t>(call.size(2, "bytes"));
  const int64_t advice = call.integer(3, "advice", 0, 3);
  check_range("buffer", offset, bytes, buffer->bytes);
  if (buffer->mapping == nullptr) MS_REFUSE("advise: expected a buffer of mapFile");
  if (bytes == 0) return nullptr;
  const auto what = static_cast<Mapping::Advice>(advice);
  if (what == Mapping::Advice::will_need) read_ahead(buffer->mapping, offset, bytes);
  else if (what == Mapping::Advice::wait) wait_for_read(*buffer->mapping, offset, bytes);
  else buffer->mapping->advise(offset, bytes, what);
  return nullptr;
}

}  // namespace exported
}  // namespace metashard
