// See driver.h. The library stays open for the life of the process: its threads and handlers cannot be unloaded safely.
#include "driver.h"

#include <dlfcn.h>

#include <cstdlib>

namespace metashard::cuda {

namespace {

constexpr const char *driver_variable = "METASHARD_CUDA_DRIVER";
constexpr const char *emulated_variable = "METASHARD_CUDA_EMULATED";
constexpr const char *emulator_library = "emulator/libmetashard_cuda_emulator.so";

enum class Choice { system, named, emulated };

struct Source {
  std::string path;
  Choice choice;
};

// The emulator lies in a folder beside this plugin.
std::string emulator_path() {
  Dl_info plugin = {};
  dladdr(reinterpret_cast<const void *>(&emulator_path), &plugin);
  const std::string path = plugin.dli_fname == nullptr ? "" : plugin.dli_fname;
  return path.substr(0, path.rfind('/') + 1) + emulator_library;
}

Source driver_source() {
  const auto value = [](const char *variable) {
    const char *text = std::getenv(variable);
    return std::string(text == nullptr ? "" : text);
  };
  if (!value(emulated_variable).empty()) return {emulator_path(), Choice::emulated};
  if (!value(driver_variable).empty()) return {value(driver_variable), Choice::named};
  return {"libcuda.so.1", Choice::system};
}

void *open_library(const Source &source) {
  void *library = dlopen(source.path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) return library;
  const std::string reason = dlerror();
  if (source.choice == Choice::emulated) {
    refuse(MS_UNAVAILABLE, "cannot open the emulated CUDA driver (" + reason +
                               "): build it with node scripts/build-emulator.mjs in a checkout of metashard, or unset " +
                               emulated_variable);
  }
  if (source.choice == Choice::named) {
    refuse(MS_UNAVAILABLE, std::string("cannot open the CUDA driver that ") + driver_variable + " names (" + reason +
                               "): correct that path, or unset the variable to use the system's driver");
  }
  refuse(MS_UNAVAILABLE, "cannot open the CUDA driver (" + reason + "): install the NVIDIA driver, or use cpu devices");
}

void *entry_point(void *library, const Source &source, const char *name) {
  void *function = dlsym(library, name);
  if (function != nullptr) return function;
  const std::string cure = source.choice == Choice::emulated ? "build it again with node scripts/build-emulator.mjs"
                           : source.choice == Choice::named
                               ? std::string("point ") + driver_variable + " at a CUDA driver or unset it"
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
  opened.emulated = dlsym(library, "metashard_emulated_driver") != nullptr;
  CUresult result = opened.cuInit(0);
  if (result != CUDA_SUCCESS && opened.emulated) refuse(MS_INVALID, opened.own_text(result));  // a setting it cannot read
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
  if (cuGetErrorName(result, &name) != CUDA_SUCCESS || name == nullptr) name = "unknown status";
  return std::string(name) + " (" + std::to_string(static_cast<int>(result)) + "): " + own_text(result);
}

std::string Driver::own_text(CUresult result) const {
  const char *text = nullptr;
  if (cuGetErrorString(result, &text) != CUDA_SUCCESS || text == nullptr) text = "the driver has no text for it";
  return text;
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
