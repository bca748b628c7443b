// Making Failures: from printf-style words, and from what a backend wrote into an ms_error.
#include "failure.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace metashard {

Failure::Failure(int status, int native_code, std::string file, int line, std::string message)
    : status(status), native_code(native_code), file(std::move(file)), line(line), message(std::move(message)) {}

void fail(int status, int native_code, const char *file, int line, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  va_list again;
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, arguments);
  va_end(arguments);
  std::string message(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  std::vsnprintf(message.data(), message.size() + 1, format, again);
  va_end(again);
  throw Failure(status, native_code, file, line, std::move(message));
}

void fail_backend(int status, const ms_error &error, const std::string &where) {
  const std::string said(error.message, strnlen(error.message, sizeof(error.message)));
  std::string message = where.empty() ? "" : where + ": ";
  message += said.empty() ? "the backend failed with status " + std::to_string(status) : said;
  throw Failure(status, error.native_code, error.file == nullptr ? "" : error.file, error.line, std::move(message));
}

}  // namespace metashard
