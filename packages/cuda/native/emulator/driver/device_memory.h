// The memory of one emulated device: host pages in an address range of its own, under a hard budget. An allocation ends at a
// page that nobody may touch, and a freed one stays untouchable for a while, so that a kernel that strays is caught by the
// processor. Fresh memory is poisoned, not zero. Not thread safe: the driver's lock guards it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>

namespace metashard::emulator {

class DeviceMemory {
 public:
  static constexpr size_t alignment = 256;       // of addresses
  static constexpr size_t granularity = 512;     // of what is counted
  static constexpr size_t poisoned = 1u << 20;   // of each allocation, at its start

  explicit DeviceMemory(uint64_t budget) : budget_(budget) {}
  DeviceMemory(const DeviceMemory &) = delete;
  DeviceMemory &operator=(const DeviceMemory &) = delete;

  uint64_t budget() const { return budget_; }
  uint64_t used() const { return used_; }

  // 0 when the budget or the machine has no room. `bytes` > 0.
  uintptr_t allocate(size_t bytes);
  bool free(uintptr_t address);
  void free_all();

  // Whether all of it lies in one live allocation.
  bool holds(uintptr_t address, size_t bytes) const;
  // Whether the address is of this device at all: in an allocation, between them, or in one that was freed.
  bool reserves(uintptr_t address) const { return address - base_ < reserved_; }

 private:
  struct Allocation {
    uintptr_t address;
    size_t bytes;
    size_t page_bytes;  // from the key on, without the guard page
  };

  bool reserve();
  uintptr_t find_gap(size_t bytes) const;
  void release(uintptr_t pages, const Allocation &allocation);

  const uint64_t budget_;
  uint64_t used_ = 0;
  uintptr_t base_ = 0;
  size_t reserved_ = 0;
  uintptr_t next_ = 0;  // where the search for a gap goes on, so that addresses are not soon used again
  std::map<uintptr_t, Allocation> allocations_;  // by first page
};

}  // namespace metashard::emulator
