// Files that weights are read from: regular ones, read with pread. What cannot be opened or read is MS_IO.
#pragma once
#include <cstdint>
#include <string>

#include "id_table.h"

namespace metashard {

class File {
 public:
  // Opens for reading. Throws with errno as the native code; refuses what is not a regular file.
  explicit File(std::string path);
  ~File();
  File(const File &) = delete;
  File &operator=(const File &) = delete;

  // Reads all of it or throws with path and offset. Any number of threads may read at once.
  void read(uint64_t offset, void *destination, uint64_t bytes) const;
  int descriptor() const { return descriptor_; }

  const std::string path;
  uint64_t bytes = 0;  // when it was opened

 private:
  int descriptor_ = -1;
};

IdTable<File, IdKind::file> &files();

}  // namespace metashard
