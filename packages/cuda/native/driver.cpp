// See driver.h. The library stays open for the life of the process: its threads and handlers cannot be unloaded safely.
#include "driver.h"

#include <dlfcn.h>

#include <cstdlib>

namespace metashard::cuda {

namespace {

constexpr const char *driver_variable = "METASHARD_CUDA_DRIVER";

struct Source {
  std::string path;
  bool chosen;  // named by METASHARD_CUDA_DRIVER
};

Source driver_source() {
  const char *named = std::getenv(driver_variable);
  if (named != nullptr && *named != '\0') return {named, true};
  return {"libcuda.so.1", false};
}

void *open_library(const Source &source) {
  void *library = dlopen(source.path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) return library;
  const std::string reason = dlerror();
  if (source.chosen) {
    refuse(MS_UNAVAILABLE, std::string("cannot open the CUDA driver that ") + driver_variable + " names (" + reason +
                               "): correct that path, or unset the variable to use the system's driver");
  }
  refuse(MS_UNAVAILABLE, "cannot open the CUDA driver (" + reason + "): install the NVIDIA driver, or use cpu devices");
}

void *entry_point(void *library, const Source &source, const char *name) {
  void *function = dlsym(library, name);
  if (function != nullptr) return function;
  const std::string cure = source.chosen ? std::string("point ") + driver_variable + " at a CUDA driver or unset it"
                                         : "update the NVIDIA driver to version 470 or newer";
  dlclose(library);
  refuse(MS_UNAVAILABLE, source.path + " lacks the entry point " + name + ": " + cure);
}

Driver open_driver() {
  const Source source = driver_source();
  void *library = open_library(source);
  Driver opened{};
  opened.path = source.path;
#define MS_CU(name, parameters) \
  opened.name = reinterpret_cast<decltype(opened.name)>(entry_point(library, source, #name));
#include "cu_functions.def"
#undef MS_CU
  CUresult result = opened.cuInit(0);
  if (result == CUDA_SUCCESS) result = opened.cuDriverGetVersion(&opened.version);
  if (result != CUDA_SUCCESS) {
    throw Failure{MS_UNAVAILABLE, result, Where::current(),
                  source.path + " opens but finds no usable GPU (" + opened.result_text(result) +
                      "): check nvidia-smi and CUDA_VISIBLE_DEVICES, or use cpu devices"};
  }
  return opened;
}

}  // namespace

std::string Driver::result_text(CUresult result) const {
  const char *name = nullptr;
  const char *text = nullptr;
  if (cuGetErrorName(result, &name) != CUDA_SUCCESS || name == nullptr) name = "unknown status";
  if (cuGetErrorString(result, &text) != CUDA_SUCCESS || text == nullptr) text = "the driver has no text for it";
  return std::string(name) + " (" + std::to_string(static_cast<int>(result)) + "): " + text;
}

void check(CUresult result, const std::string &call, Where where) {
  if (result == CUDA_SUCCESS) return;
  throw Failure{status_of(result), result, where, call + ": " + driver().result_text(result)};
}

const Driver &driver() {
  static const Driver *const opened = new Driver(open_driver());  // never destroyed: threads may outlive exit handlers
  return *opened;
}

}  // namespace metashard::cuda
