// The entry points of modules, functions and launches. The code comes from the kernels' library that was built for the host and
// lies beside this one; the image given to cuModuleLoadData, a fat binary for real GPUs, is not looked at.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "../runtime/grid.h"
#include "driver.h"

namespace metashard::emulator {

namespace {

constexpr const char *kernels_library = "libmetashard_cuda_kernels_host.so";
constexpr int shared_without_asking = 48 << 10;  // more has to be asked for by cuFuncSetAttribute
constexpr unsigned most_grid_yz = 65535;
constexpr unsigned most_block_z = 64;

std::string folder_of_this_library() {
  Dl_info info = {};
  dladdr(reinterpret_cast<const void *>(&folder_of_this_library), &info);
  const std::string path = info.dli_fname == nullptr ? "" : info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == path.npos ? "" : path.substr(0, slash + 1);
}

struct KernelLaunch {
  Driver &driver;
  Device &device;
  const KernelEntry *kernel;
  dim3 grid, block;
  unsigned dynamic_shared;
  std::vector<unsigned char> values;   // of the arguments
  std::vector<size_t> offsets;

  Outcome run();
  std::string misdirected_argument() const;
  bool may_touch(uintptr_t address) const;
  bool foreign(uintptr_t word) const;
};

// Memory a kernel of the device may reach: the device's and its peers', and pinned host memory. One past an end is no error.
bool KernelLaunch::may_touch(uintptr_t address) const {
  if (device.memory.holds(address, 0) || driver.is_pinned(reinterpret_cast<const void *>(address), 0)) return true;
  return std::ranges::any_of(device.peers, [&](int peer) {
    return driver.devices[static_cast<size_t>(peer)].memory.holds(address, 0);
  });
}

// Whether a word inside of a struct is the address of memory that another device holds. Padding may join half of an old pointer
// to a number, so a word whose lower half looks like one says nothing.
bool KernelLaunch::foreign(uintptr_t word) const {
  constexpr uint32_t small_number = 1u << 26;
  if (static_cast<uint32_t>(word) < small_number) return false;
  const auto reserves = [word](const Device &other) { return other.memory.reserves(word); };
  return std::ranges::any_of(driver.devices, reserves) && !may_touch(word) && driver.holder(word, 0) != nullptr;
}

// Says which argument leads where no memory of the device is; empty: none.
std::string KernelLaunch::misdirected_argument() const {
  for (size_t i = 0; i < offsets.size(); i++) {
    const KernelParameter &parameter = kernel->parameters[i];
    for (size_t at = 0; at + sizeof(uintptr_t) <= parameter.bytes; at += sizeof(uintptr_t)) {
      uintptr_t word = 0;
      std::memcpy(&word, values.data() + offsets[i] + at, sizeof word);
      if (parameter.pointer ? word == 0 || may_touch(word) : !foreign(word)) continue;
      char text[160];
      std::snprintf(text, sizeof text, "argument %zu, byte %zu: 0x%zx is no memory of device %d", i, at, word, device.ordinal);
      const auto owner = std::ranges::find_if(driver.devices, [&](const Device &d) { return d.memory.reserves(word); });
      if (owner == driver.devices.end()) return text;
      return std::string(text) + ", but is or was device " + std::to_string(owner->ordinal) + "'s";
    }
  }
  return "";
}

Outcome KernelLaunch::run() {
  GridLaunch launch;
  {
    const Driver::Lock lock(driver.mutex);
    if (const std::string wrong = misdirected_argument(); !wrong.empty()) {
      return {CUDA_ERROR_ILLEGAL_ADDRESS, std::string("kernel ") + kernel->name + ": " + wrong};
    }
    const uint64_t seed = driver.settings.seed;
    launch.seed = seed < 2 ? seed : seed + device.launches++ * 2654435761u;
  }
  std::vector<void *> arguments;
  for (const size_t offset : offsets) arguments.push_back(values.data() + offset);
  launch.module = driver.kernels;
  launch.kernel = kernel;
  launch.grid = grid;
  launch.block = block;
  launch.dynamic_shared = dynamic_shared;
  launch.arguments = arguments.data();
  launch.late_copies = launch.bfloat16_matrices = device.setting.compute_major >= 8;
  KernelFailure failure;
  if (run_grid(launch, failure)) return {};
  return {failure.status, std::move(failure.message)};
}

void copy_arguments(KernelLaunch &launch, void **parameters) {
  for (size_t i = 0; i < launch.kernel->parameter_count; i++) {
    const KernelParameter &parameter = launch.kernel->parameters[i];
    const size_t offset = (launch.values.size() + parameter.alignment - 1) / parameter.alignment * parameter.alignment;
    launch.values.resize(offset + parameter.bytes);
    std::memcpy(launch.values.data() + offset, parameters[i], parameter.bytes);
    launch.offsets.push_back(offset);
  }
}

// The rules of cuLaunchKernel; empty: all kept.
std::string broken_launch_rule(const Function &function, dim3 grid, dim3 block, unsigned dynamic_shared, void **parameters) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > most_block_z) return "expected 1 to 1024 threads a block";
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "expected at least one block";
  if (grid.x > 0x7fffffff || grid.y > most_grid_yz || grid.z > most_grid_yz) return "the grid is too large";
  if (dynamic_shared > static_cast<unsigned>(function.most_dynamic_shared)) {
    return "expected at most " + std::to_string(function.most_dynamic_shared) + " bytes of dynamic shared memory, got " +
           std::to_string(dynamic_shared);
  }
  if (parameters == nullptr && function.kernel->parameter_count > 0) return "the arguments are missing";
  return "";
}

CUresult no_such_function() { return refuse(CUDA_ERROR_INVALID_HANDLE, "no such function"); }

}  // namespace

MS_ENTRY cuModuleLoadData(CUmodule *module, const void *image) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    if (image == nullptr) return refuse(CUDA_ERROR_INVALID_VALUE, "cuModuleLoadData: no image");
    if (driver.kernels == nullptr) {
      std::string why;
      driver.kernels = open_kernel_module(folder_of_this_library() + kernels_library, why);
      if (driver.kernels == nullptr) return refuse(CUDA_ERROR_SHARED_OBJECT_INIT_FAILED, why);
    }
    *module = reinterpret_cast<CUmodule>(driver.modules.add(std::make_shared<Module>(Module{device, {}})));
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuModuleUnload(CUmodule handle) {
  return on_device([&](Driver &driver, auto &lock, Device &) {
    const auto module = driver.modules.find(handle);
    if (module == nullptr) return refuse(CUDA_ERROR_INVALID_HANDLE, "no such module");
    driver.wait(lock, module->device);
    for (const auto &[name, function] : module->functions) driver.functions.remove(function);
    driver.modules.remove(module);
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuModuleGetFunction(CUfunction *function, CUmodule handle, const char *name) {
  return on_device([&](Driver &driver, auto &, Device &) {
    const auto module = driver.modules.find(handle);
    if (module == nullptr) return refuse(CUDA_ERROR_INVALID_HANDLE, "no such module");
    const KernelEntry *kernel = find_kernel(*driver.kernels, name);
    if (kernel == nullptr) return refuse(CUDA_ERROR_NOT_FOUND, std::string("no kernel is called ") + name);
    auto &known = module->functions[name];
    if (known == nullptr) known = std::make_shared<Function>(Function{module->device, kernel, shared_without_asking});
    *function = reinterpret_cast<CUfunction>(driver.functions.add(known));
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  return on_device([&](Driver &driver, auto &, Device &) {
    const auto function = driver.functions.find(handle);
    if (function == nullptr) return no_such_function();
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
      return refuse(CUDA_ERROR_INVALID_VALUE, "the emulated driver cannot set function attribute " +
                                                  std::to_string(static_cast<unsigned>(attribute)));
    }
    if (value < 0 || value > function->device.most_shared()) {
      return refuse(CUDA_ERROR_INVALID_VALUE, "expected at most " + std::to_string(function->device.most_shared()) +
                                                  " bytes of shared memory, got " + std::to_string(value));
    }
    function->most_dynamic_shared = value;
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned dynamic_shared, CUstream stream_handle,
                        void **parameters, void **extra) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    CUresult status = CUDA_SUCCESS;
    const auto stream = driver.stream_of(device, stream_handle, status);
    if (stream == nullptr) return status;
    const auto function = driver.functions.find(handle);
    if (function == nullptr) return no_such_function();
    if (&function->device != &device) {
      return refuse(CUDA_ERROR_INVALID_HANDLE, "the function was loaded on device " + std::to_string(function->device.ordinal));
    }
    const dim3 grid(grid_x, grid_y, grid_z), block(block_x, block_y, block_z);
    const std::string rule = extra != nullptr ? "arguments by `extra` are not emulated"
                                              : broken_launch_rule(*function, grid, block, dynamic_shared, parameters);
    if (!rule.empty()) return refuse(CUDA_ERROR_INVALID_VALUE, std::string("kernel ") + function->kernel->name + ": " + rule);
    const auto launch = std::make_shared<KernelLaunch>(
        KernelLaunch{driver, device, function->kernel, grid, block, dynamic_shared, {}, {}});
    copy_arguments(*launch, parameters);
    return driver.submit(*stream, {[launch] { return launch->run(); }, {}, {}});
  });
}

}  // namespace metashard::emulator
