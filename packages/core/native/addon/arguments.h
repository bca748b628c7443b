// One call from JavaScript: its arguments, checked while they are read (a wrong one throws, it never crashes), and the making
// of results. Plain C Node-API, version 9. What the functions do is elsewhere (functions.h).
#pragma once
#include <node_api.h>

#include <cstdint>
#include <span>
#include <string>
#include <unordered_set>

#include "failure.h"

namespace metashard {

class Call;

// An exported function; addon.cc has the table of all.
struct Function {
  const char *name;
  napi_value (*run)(Call &call);
};

// What one JavaScript thread (environment) opened: it is closed when the thread ends, if it is still open then.
struct Environment {
  std::unordered_set<double> contexts;
  std::unordered_set<double> files;
};

class Call {
 public:
  Call(napi_env env, napi_callback_info info);

  const Function &function() const { return *function_; }
  Environment &environment() const;

  // Arguments by index; `what` names them in errors.
  double id(size_t index, const char *what) const;
  int64_t integer(size_t index, const char *what, int64_t least, int64_t most) const;
  // A count of bytes, an offset: 0 … 2^53 - 1.
  int64_t size(size_t index, const char *what) const { return integer(index, what, 0, kMaxSafeInteger); }
  bool boolean(size_t index, const char *what) const;
  std::string text(size_t index, const char *what) const;
  // The memory may be shared with other threads: read every element once.
  std::span<const double> doubles(size_t index, const char *what) const;
  std::span<const int32_t> ints(size_t index, const char *what) const;
  // Any ArrayBufferView, as bytes.
  std::span<uint8_t> bytes(size_t index, const char *what) const;

  napi_value number(double value) const;
  napi_value boolean_value(bool value) const;
  napi_value string(const std::string &value) const;
  napi_value object() const;
  napi_value array(size_t length) const;
  void set(napi_value object, const char *key, napi_value value) const;
  void set_at(napi_value array, uint32_t index, napi_value value) const;

  static constexpr int64_t kMaxSafeInteger = (1ll << 53) - 1;

 private:
  static constexpr size_t kMaxArguments = 10;

  template <class T>
  std::span<const T> elements(size_t index, const char *what, napi_typedarray_type type, const char *type_name) const;
  void expect(napi_status status) const;

  napi_env env_;
  napi_value arguments_[kMaxArguments];
  const Function *function_ = nullptr;
};

// Throws a Failure as a JavaScript error with `status`, `nativeCode`, `file` and `line`; the message starts with the name of
// the function.
void throw_to_javascript(napi_env env, const Function &function, const Failure &failure);

}  // namespace metashard
