// Ids that JavaScript holds in place of pointers. An id is a double: kind, index and generation packed below 2^53, so that a
// freed id, an id of another kind and any other number are found out and never dereferenced. Objects are shared: who found one
// keeps it alive while an operation runs, and a removal on another thread only takes it out of the table.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "failure.h"

namespace metashard {

enum class IdKind : uint64_t { context = 1, buffer = 2, program = 3, file = 4, feed = 5 };

template <class T, IdKind Kind>
class IdTable {
 public:
  double insert(std::shared_ptr<T> object) {
    std::unique_lock lock(mutex_);
    uint64_t index;
    if (!vacant_.empty()) {
      index = vacant_.back();
      vacant_.pop_back();
    } else {
      index = slots_.size();
      if (index >= kMaxIndex) MS_FAIL(MS_OUT_OF_MEMORY, "ids: expected at most %llu live objects of a kind", kMaxIndex);
      slots_.emplace_back();
    }
    slots_[index].object = std::move(object);
    return static_cast<double>(slots_[index].generation << kGenerationShift | index << kIndexShift |
                               static_cast<uint64_t>(Kind));
  }

  // The object, or null where the id is none of this table's living ones.
  std::shared_ptr<T> find(double id) const {
    std::shared_lock lock(mutex_);
    const Slot *slot = slot_of(id);
    return slot == nullptr ? nullptr : slot->object;
  }

  // As find, and forgets the id. The caller drops the last reference, outside of this table's lock.
  std::shared_ptr<T> remove(double id) {
    std::unique_lock lock(mutex_);
    Slot *slot = const_cast<Slot *>(slot_of(id));
    if (slot == nullptr) return nullptr;
    std::shared_ptr<T> object = std::move(slot->object);
    slot->object = nullptr;
    // A slot whose generations are used up is never given out again.
    if (++slot->generation < kMaxGeneration) vacant_.push_back(static_cast<uint32_t>(slot - slots_.data()));
    return object;
  }

  // As find and remove, but throwing where there is none; `what` names the argument.
  std::shared_ptr<T> get(double id, const char *what) const { return required(find(id), id, what); }
  std::shared_ptr<T> take(double id, const char *what) { return required(remove(id), id, what); }

 private:
  static std::shared_ptr<T> required(std::shared_ptr<T> object, double id, const char *what) {
    if (object == nullptr) MS_REFUSE("%s: expected the id of a live %s, got %.17g", what, kNames[int(Kind)], id);
    return object;
  }

  struct Slot {
    std::shared_ptr<T> object;
    uint64_t generation = 0;
  };
  static constexpr int kIndexShift = 3, kGenerationShift = 27;
  static constexpr unsigned long long kMaxIndex = 1ull << 24, kMaxGeneration = 1ull << 26;
  static constexpr const char *kNames[] = {"", "context", "buffer", "program", "file", "feed"};

  const Slot *slot_of(double id) const {
    if (!(id > 0 && id < 9007199254740992.0)) return nullptr;  // 2^53; NaN fails, too
    const uint64_t bits = static_cast<uint64_t>(id);
    if (static_cast<double>(bits) != id || (bits & 7) != static_cast<uint64_t>(Kind)) return nullptr;
    const uint64_t index = bits >> kIndexShift & (kMaxIndex - 1);
    if (index >= slots_.size()) return nullptr;
    const Slot &slot = slots_[index];
    return slot.object != nullptr && slot.generation == bits >> kGenerationShift ? &slot : nullptr;
  }

  mutable std::shared_mutex mutex_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> vacant_;
};

}  // namespace metashard
