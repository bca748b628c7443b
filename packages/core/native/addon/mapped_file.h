// Files mapped into memory, used in place as buffers of host-addressable devices: the packed store, whose pages the kernel keeps, shares between processes and
// reads when they are touched. A page that cannot be read (the file was cut short, the disk failed) must not kill the process: our SIGBUS handler puts zeros in
// its place and the next check_mappings() throws. Not for checkpoints: those are read with pread (file.h).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "file.h"

namespace metashard {

class Mapping {
 public:
  // Maps bytes offset … offset + bytes of the file; offset is a multiple of the page size. Private: writes never reach the file. Throws.
  Mapping(std::shared_ptr<File> file, uint64_t offset, uint64_t bytes);
  ~Mapping();
  Mapping(const Mapping &) = delete;
  Mapping &operator=(const Mapping &) = delete;

  enum class Advice { will_need = 0, release = 1, populate = 2, wait = 3 };
  // populate waits until the pages are there; release forgets them and what the kernel caches of them. will_need is
  // read_ahead's, wait is wait_for_read's.
  void advise(uint64_t offset, uint64_t bytes, Advice advice) const;

  std::byte *data() const { return data_; }

 private:
  friend void check_mappings();
  void *map(void *place, int flags) const;
  const std::shared_ptr<File> file_;
  const uint64_t offset_, bytes_;
  std::byte *data_ = nullptr;
  int slot_ = -1;
};

// Has the reader thread bring a range into memory, after the ranges asked for before; returns at once.
void read_ahead(std::shared_ptr<Mapping> mapping, uint64_t offset, uint64_t bytes);

// Returns when nothing of the range that read_ahead was asked for is still to be read.
void wait_for_read(const Mapping &mapping, uint64_t offset, uint64_t bytes);

// Throws, once, for a mapping in which a page could not be read since the last call. Cheap when there was none.
void check_mappings();

}  // namespace metashard
