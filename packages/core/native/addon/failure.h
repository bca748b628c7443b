// How native code fails: one exception type inside the addon, and the check of what backends return. Exceptions never cross
// the C interface of a backend nor Node-API; addon.cc turns them into JavaScript errors.
#pragma once
#include <exception>
#include <string>

#include "metashard/backend.h"

namespace metashard {

// A failure with everything a thrown JavaScript error carries (native.ts).
struct Failure : std::exception {
  Failure(int status, int native_code, std::string file, int line, std::string message);
  const char *what() const noexcept override { return message.c_str(); }

  int status;       // ms_status
  int native_code;  // the driver's own status or errno, or 0
  std::string file;
  int line;
  std::string message;  // "where: what, expected …, got …"
};

[[noreturn]] void fail(int status, int native_code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
[[noreturn]] void fail_backend(int status, const ms_error &error, const std::string &where);

// Throws unless a backend returned MS_OK.
inline void check(int status, const ms_error &error) {
  if (__builtin_expect(status != MS_OK, 0)) fail_backend(status, error, "");
}

}  // namespace metashard

#define MS_FAIL(status, ...) ::metashard::fail(status, 0, __FILE__, __LINE__, __VA_ARGS__)
// A caller's mistake.
#define MS_REFUSE(...) MS_FAIL(MS_INVALID, __VA_ARGS__)
