// Opening and reading files.
#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "functions.h"
#include "memory.h"

#define MS_FAIL_ERRNO(...) ::metashard::fail(MS_IO, errno, __FILE__, __LINE__, __VA_ARGS__)

namespace metashard {

IdTable<File, IdKind::file> &files() {
  static auto &table = *new IdTable<File, IdKind::file>;
  return table;
}

// O_NONBLOCK keeps the opening of a FIFO from waiting for a writer; it changes nothing for regular files.
File::File(std::string name) : path(std::move(name)), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (descriptor_ < 0) MS_FAIL_ERRNO("%s: cannot be opened: %s", path.c_str(), std::strerror(errno));
  struct stat facts{};
  if (fstat(descriptor_, &facts) != 0 || !S_ISREG(facts.st_mode)) {
    close(descriptor_);
    MS_FAIL(MS_IO, "%s: expected a regular file, got %s", path.c_str(), S_ISDIR(facts.st_mode) ? "a directory" : "something else");
  }
  bytes = static_cast<uint64_t>(facts.st_size);
}

File::~File() { close(descriptor_); }

void File::read(uint64_t offset, void *destination, uint64_t size) const {
  auto *to = static_cast<char *>(destination);
  for (uint64_t done = 0; done < size;) {
    const size_t wanted = std::min<uint64_t>(size - done, uint64_t{1} << 30);
    const ssize_t got = pread(descriptor_, to + done, wanted, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      MS_FAIL_ERRNO("%s: cannot be read at offset %llu: %s", path.c_str(), static_cast<unsigned long long>(offset + done),
                    std::strerror(errno));
    }
    if (got == 0) {
      MS_FAIL(MS_IO, "%s: expected %llu bytes at offset %llu, got %llu: the file is cut short", path.c_str(),
                static_cast<unsigned long long>(size), static_cast<unsigned long long>(offset),
                static_cast<unsigned long long>(done));
    }
    done += static_cast<uint64_t>(got);
  }
}

namespace exported {

napi_value open_file(Call &call) {
  const double id = files().insert(std::make_shared<File>(call.text(0, "path")));
  call.environment().files.insert(id);
  return call.number(id);
}

napi_value file_bytes(Call &call) {
  return call.number(static_cast<double>(files().get(call.id(0, "file"), "file")->bytes));
}

napi_value read_file(Call &call) {
  const std::shared_ptr<File> file = files().get(call.id(0, "file"), "file");
  const auto offset = static_cast<uint64_t>(call.size(1, "offset"));
  const auto destination = call.bytes(2, "destination");
  check_range(file->path.c_str(), offset, destination.size(), file->bytes);
  file->read(offset, destination.data(), destination.size());
  return nullptr;
}

napi_value close_file(Call &call) {
  const double id = call.id(0, "file");
  files().take(id, "file");
  call.environment().files.erase(id);
  return nullptr;
}

}  // namespace exported
}  // namespace metashard
