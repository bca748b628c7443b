// Opening backends: once per process, whichever thread asks first. What a backend does is its own matter (backend.h).
#include "registry.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "functions.h"

namespace metashard {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, Backend> backends;  // nodes do not move
};

// Never destroyed: worker threads may still run while the process exits.
Registry &registry() {
  static Registry &instance = *new Registry;
  return instance;
}

// Copies the table of functions and checks that every slot an addon may call without asking is filled.
ms_backend_v1 checked_api(const ms_backend_v1 *offered, const std::string &name, const std::string &path) {
  if (offered == nullptr || offered->abi != MS_BACKEND_ABI) {
    MS_FAIL(MS_UNAVAILABLE, "backend %s: expected interface %d from %s, got %u", name.c_str(), MS_BACKEND_ABI, path.c_str(),
            offered == nullptr ? 0 : offered->abi);
  }
  constexpr size_t required = offsetof(ms_backend_v1, graph_begin);
  if (offered->struct_bytes < required) {
    MS_FAIL(MS_UNAVAILABLE, "backend %s: expected an interface of at least %zu bytes from %s, got %u", name.c_str(), required,
            path.c_str(), offered->struct_bytes);
  }
  ms_backend_v1 api{};
  std::memcpy(&api, offered, std::min<size_t>(offered->struct_bytes, sizeof(api)));
  for (size_t at = offsetof(ms_backend_v1, name); at < required; at += sizeof(void *)) {
    void *slot;
    std::memcpy(&slot, reinterpret_cast<const char *>(&api) + at, sizeof(slot));
    if (slot == nullptr) {
      MS_FAIL(MS_UNAVAILABLE, "backend %s: expected every required function from %s, got none in the slot at byte %zu",
              name.c_str(), path.c_str(), at);
    }
  }
  if (name != api.name) {
    MS_FAIL(MS_UNAVAILABLE, "backend %s: expected it in %s, got the backend \"%s\"", name.c_str(), path.c_str(), api.name);
  }
  return api;
}

// The path without links, so that a package found over two paths is one backend.
std::string real_path(const std::string &path) {
  const std::unique_ptr<char, decltype(&std::free)> real(realpath(path.c_str(), nullptr), std::free);
  return real == nullptr ? path : real.get();
}

ms_backend_v1 open_shared_object(const std::string &name, const std::string &path) {
  if (path.find('/') == std::string::npos) {
    MS_REFUSE("backend %s: expected the path of a shared object, got \"%s\"", name.c_str(), path.c_str());
  }
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char *reason = dlerror();
    MS_FAIL(MS_UNAVAILABLE, "backend %s: %s", name.c_str(), reason == nullptr ? path.c_str() : reason);
  }
  const auto entry = reinterpret_cast<ms_backend_v1_get_fn>(dlsym(library, MS_BACKEND_ENTRY));
  if (entry == nullptr) {
    dlclose(library);
    MS_FAIL(MS_UNAVAILABLE, "backend %s: expected %s to export %s", name.c_str(), path.c_str(), MS_BACKEND_ENTRY);
  }
  return checked_api(entry(), name, path);
}

}  // namespace

const Backend &backend_named(const std::string &name) {
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().backends.find(name);
  if (found == registry().backends.end() || !found->second.initialized) {
    MS_FAIL(MS_UNAVAILABLE, "backend %s: expected it to be loaded first (loadBackend)", name.c_str());
  }
  return found->second;
}

namespace exported {

napi_value load_backend(Call &call) {
  const std::string name = call.text(0, "name"), path = real_path(call.text(1, "path"));
  const std::lock_guard lock(registry().mutex);
  auto found = registry().backends.find(name);
  if (found == registry().backends.end()) {
    const ms_backend_v1 api = open_shared_object(name, path);
    found = registry().backends.emplace(name, Backend{name, path, api, false}).first;
  }
  Backend &backend = found->second;
  if (backend.path != path) {
    MS_REFUSE("backend %s: expected %s, which is loaded already, got %s", name.c_str(), backend.path.c_str(), path.c_str());
  }
  if (!backend.initialized) {
    ms_error error{};
    check(backend.api.initialize(&error), error);
    backend.initialized = true;
  }
  return nullptr;
}

napi_value configure_backend(Call &call) {
  const Backend &backend = backend_named(call.text(0, "name"));
  const std::string key = call.text(1, "key"), value = call.text(2, "value");
  ms_error error{};
  check(backend.api.configure(key.c_str(), value.c_str(), &error), error);
  return nullptr;
}

napi_value describe_backend(Call &call) {
  const Backend &backend = backend_named(call.text(0, "name"));
  std::vector<char> json(64 * 1024);
  ms_error error{};
  check(backend.api.describe(json.data(), json.size(), &error), error);
  return call.string(std::string(json.data(), strnlen(json.data(), json.size())));
}

napi_value device_count(Call &call) {
  const Backend &backend = backend_named(call.text(0, "backend"));
  int32_t count = 0;
  ms_error error{};
  check(backend.api.device_count(&count, &error), error);
  return call.number(count);
}

napi_value device_info(Call &call) {
  const Backend &backend = backend_named(call.text(0, "backend"));
  const auto device = static_cast<int32_t>(call.integer(1, "device", 0, INT32_MAX));
  ms_device_info info{};
  ms_error error{};
  check(backend.api.device_info(device, &info, &error), error);
  const napi_value result = call.object();
  call.set(result, "name", call.string(std::string(info.name, strnlen(info.name, sizeof(info.name)))));
  call.set(result, "totalBytes", call.number(static_cast<double>(info.total_bytes)));
  call.set(result, "freeBytes", call.number(static_cast<double>(info.free_bytes)));
  call.set(result, "hostAddressable", call.boolean_value(info.host_addressable != 0));
  call.set(result, "emulated", call.boolean_value(info.emulated != 0));
  call.set(result, "computeMajor", call.number(info.compute_major));
  call.set(result, "computeMinor", call.number(info.compute_minor));
  return result;
}

}  // namespace exported
}  // namespace metashard
