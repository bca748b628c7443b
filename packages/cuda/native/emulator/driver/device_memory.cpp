// See device_memory.h.
#include "device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>

namespace metashard::emulator {

namespace {

constexpr size_t page = 4096;
constexpr uint64_t address_space_factor = 16;  // addresses per byte of budget; they cost nothing
constexpr uint64_t least_reserved = uint64_t{16} << 30;

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

void *inaccessible(void *at, size_t bytes, int flags) {
  return mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

}  // namespace

bool DeviceMemory::reserve() {
  if (reserved_ != 0) return true;
  const size_t bytes = std::max(budget_ * address_space_factor, least_reserved);
  void *range = inaccessible(nullptr, bytes, 0);
  if (range == MAP_FAILED) return false;
  base_ = next_ = reinterpret_cast<uintptr_t>(range);
  reserved_ = bytes;
  return true;
}

// The first gap at or after `next_` that takes `bytes`, going round once; 0: none.
uintptr_t DeviceMemory::find_gap(size_t bytes) const {
  for (const uintptr_t from : {next_, base_}) {
    uintptr_t at = from;
    auto following = allocations_.lower_bound(from);
    if (following != allocations_.begin()) {
      const auto &[start, before] = *std::prev(following);
      at = std::max(at, start + before.page_bytes + page);
    }
    for (; following != allocations_.end() && following->first - at < bytes; ++following) {
      at = following->first + following->second.page_bytes + page;
    }
    if (at + bytes <= base_ + reserved_) return at;
  }
  return 0;
}

uintptr_t DeviceMemory::allocate(size_t bytes) {
  const uint64_t counted = rounded(bytes, granularity);
  if (counted < bytes || counted > budget_ - used_ || !reserve()) return 0;
  const size_t aligned = rounded(bytes, alignment);
  const size_t page_bytes = rounded(aligned, page);
  const uintptr_t pages = find_gap(page_bytes + page);
  if (pages == 0) return 0;
  if (mprotect(reinterpret_cast<void *>(pages), page_bytes, PROT_READ | PROT_WRITE) != 0) return 0;
  const uintptr_t address = pages + page_bytes - aligned;
  std::memset(reinterpret_cast<void *>(address), 0xff, std::min(bytes, poisoned));
  allocations_.emplace(pages, Allocation{address, bytes, page_bytes});
  used_ += counted;
  next_ = pages + page_bytes + page;
  return address;
}

void DeviceMemory::release(uintptr_t pages, const Allocation &allocation) {
  inaccessible(reinterpret_cast<void *>(pages), allocation.page_bytes, MAP_FIXED);
  used_ -= rounded(allocation.bytes, granularity);
}

bool DeviceMemory::free(uintptr_t address) {
  const auto after = allocations_.upper_bound(address);
  if (after == allocations_.begin()) return false;
  const auto found = std::prev(after);
  if (found->second.address != address) return false;
  release(found->first, found->second);
  allocations_.erase(found);
  return true;
}

void DeviceMemory::free_all() {
  for (const auto &[pages, allocation] : allocations_) release(pages, allocation);
  allocations_.clear();
}

bool DeviceMemory::holds(uintptr_t address, size_t bytes) const {
  const auto after = allocations_.upper_bound(address);
  if (after == allocations_.begin()) return false;
  const Allocation &allocation = std::prev(after)->second;
  const uintptr_t offset = address - allocation.address;
  return address >= allocation.address && offset <= allocation.bytes && bytes <= allocation.bytes - offset;
}

}  // namespace metashard::emulator
