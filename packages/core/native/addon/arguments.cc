// Reading arguments and making results over the C Node-API.
#include "arguments.h"

#include <cmath>

namespace metashard {

Call::Call(napi_env env, napi_callback_info info) : env_(env) {
  size_t count = kMaxArguments;  // absent ones are filled with undefined
  void *data = nullptr;
  napi_get_cb_info(env, info, &count, arguments_, nullptr, &data);
  function_ = static_cast<const Function *>(data);
}

Environment &Call::environment() const {
  void *data = nullptr;
  expect(napi_get_instance_data(env_, &data));
  return *static_cast<Environment *>(data);
}

double Call::id(size_t index, const char *what) const {
  double value;
  if (napi_get_value_double(env_, arguments_[index], &value) != napi_ok) MS_REFUSE("%s: expected a number", what);
  return value;
}

int64_t Call::integer(size_t index, const char *what, int64_t least, int64_t most) const {
  const double value = id(index, what);
  if (!(value >= static_cast<double>(least) && value <= static_cast<double>(most)) || value != std::trunc(value)) {
    MS_REFUSE("%s: expected an integer from %lld to %lld, got %.17g", what, static_cast<long long>(least),
              static_cast<long long>(most), value);
  }
  return static_cast<int64_t>(value);
}

bool Call::boolean(size_t index, const char *what) const {
  bool value;
  if (napi_get_value_bool(env_, arguments_[index], &value) != napi_ok) MS_REFUSE("%s: expected a boolean", what);
  return value;
}

std::string Call::text(size_t index, const char *what) const {
  size_t length;
  if (napi_get_value_string_utf8(env_, arguments_[index], nullptr, 0, &length) != napi_ok) {
    MS_REFUSE("%s: expected a string", what);
  }
  std::string value(length, '\0');
  expect(napi_get_value_string_utf8(env_, arguments_[index], value.data(), length + 1, &length));
  if (value.find('\0') != std::string::npos) MS_REFUSE("%s: expected a string without NUL characters", what);
  return value;
}

template <class T>
std::span<const T> Call::elements(size_t index, const char *what, napi_typedarray_type type, const char *type_name) const {
  napi_typedarray_type got;
  size_t length;
  void *data;
  if (napi_get_typedarray_info(env_, arguments_[index], &got, &length, &data, nullptr, nullptr) != napi_ok || got != type) {
    MS_REFUSE("%s: expected a %s", what, type_name);
  }
  return {static_cast<const T *>(data), data == nullptr ? 0 : length};
}

std::span<const double> Call::doubles(size_t index, const char *what) const {
  return elements<double>(index, what, napi_float64_array, "Float64Array");
}

std::span<const int32_t> Call::ints(size_t index, const char *what) const {
  return elements<int32_t>(index, what, napi_int32_array, "Int32Array");
}

static size_t element_bytes(napi_typedarray_type type, const char *what) {
  switch (type) {
    case napi_int8_array:
    case napi_uint8_array:
    case napi_uint8_clamped_array:
      return 1;
    case napi_int16_array:
    case napi_uint16_array:
      return 2;
    case napi_int32_array:
    case napi_uint32_array:
    case napi_float32_array:
      return 4;
    case napi_float64_array:
    case napi_bigint64_array:
    case napi_biguint64_array:
      return 8;
    default:
      MS_REFUSE("%s: expected a typed array of a known type, got type %d", what, static_cast<int>(type));
  }
}

std::span<uint8_t> Call::bytes(size_t index, const char *what) const {
  napi_typedarray_type type;
  size_t length;
  void *data;
  if (napi_get_typedarray_info(env_, arguments_[index], &type, &length, &data, nullptr, nullptr) == napi_ok) {
    length *= element_bytes(type, what);
  } else if (napi_get_dataview_info(env_, arguments_[index], &length, &data, nullptr, nullptr) != napi_ok) {
    MS_REFUSE("%s: expected a typed array or DataView", what);
  }
  return {static_cast<uint8_t *>(data), data == nullptr ? 0 : length};
}

napi_value Call::number(double value) const {
  napi_value result;
  expect(napi_create_double(env_, value, &result));
  return result;
}

napi_value Call::boolean_value(bool value) const {
  napi_value result;
  expect(napi_get_boolean(env_, value, &result));
  return result;
}

napi_value Call::string(const std::string &value) const {
  napi_value result;
  expect(napi_create_string_utf8(env_, value.data(), value.size(), &result));
  return result;
}

napi_value Call::object() const {
  napi_value result;
  expect(napi_create_object(env_, &result));
  return result;
}

napi_value Call::array(size_t length) const {
  napi_value result;
  expect(napi_create_array_with_length(env_, length, &result));
  return result;
}

void Call::set(napi_value object, const char *key, napi_value value) const {
  expect(napi_set_named_property(env_, object, key, value));
}

void Call::set_at(napi_value array, uint32_t index, napi_value value) const {
  expect(napi_set_element(env_, array, index, value));
}

void Call::expect(napi_status status) const {
  if (status != napi_ok) MS_FAIL(MS_INTERNAL, "Node-API: expected success, got status %d", static_cast<int>(status));
}

void throw_to_javascript(napi_env env, const Function &function, const Failure &failure) {
  bool pending = false;
  napi_is_exception_pending(env, &pending);
  if (pending) return;
  const std::string message = std::string(function.name) + ": " + failure.message;
  // Null where a call fails because the thread is being terminated; Node-API refuses null.
  napi_value text = nullptr, error = nullptr, value = nullptr;
  // A backend's message may have been cut inside a character: V8 replaces what is not UTF-8.
  napi_create_string_utf8(env, message.data(), message.size(), &text);
  if (napi_create_error(env, nullptr, text, &error) != napi_ok) return;
  napi_create_int32(env, failure.status, &value);
  napi_set_named_property(env, error, "status", value);
  napi_create_int32(env, failure.native_code, &value);
  napi_set_named_property(env, error, "nativeCode", value);
  napi_create_string_utf8(env, failure.file.data(), failure.file.size(), &value);
  napi_set_named_property(env, error, "file", value);
  napi_create_int32(env, failure.line, &value);
  napi_set_named_property(env, error, "line", value);
  napi_throw(env, error);
}

}  // namespace metashard
