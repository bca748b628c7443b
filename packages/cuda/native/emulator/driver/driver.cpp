// See driver.h. The entry points of the driver itself, its devices and their primary contexts.
#include "driver.h"

#include <cstdio>
#include <cstdlib>

namespace metashard::emulator {

thread_local Device *current_device = nullptr;

Driver &Driver::instance() {
  static Driver *const driver = new Driver;
  return *driver;
}

// Shared memory a block may ask for, by compute capability (CUDA programming guide, "Technical Specifications per Compute
// Capability").
int Device::most_shared() const {
  switch (compute()) {
    case 75:
      return 64 << 10;
    case 80:
    case 87:
      return 163 << 10;
    case 86:
    case 89:
    case 120:
    case 121:
      return 99 << 10;
    default:
      return 227 << 10;
  }
}

namespace {

// Values of CUdevice_attribute (CUDA driver API).
enum Attribute : unsigned {
  max_threads_per_block = 1,
  max_shared_memory_per_block = 8,
  warp_size = 10,
  multiprocessor_count = 16,
  integrated = 18,
  can_map_host_memory = 19,
  max_threads_per_multiprocessor = 39,
  unified_addressing = 41,
  compute_major = 75,
  compute_minor = 76,
  max_shared_memory_per_multiprocessor = 81,
  max_shared_memory_per_block_optin = 97,
};

bool attribute_of(const Device &device, unsigned attribute, int &value) {
  switch (attribute) {
    case max_threads_per_block:
      return value = 1024, true;
    case max_shared_memory_per_block:
      return value = 48 << 10, true;
    case warp_size:
      return value = 32, true;
    case multiprocessor_count:
      return value = 4, true;
    case integrated:
    case can_map_host_memory:
      return value = 0, true;
    case max_threads_per_multiprocessor:
      return value = device.compute() == 75 ? 1024 : 1536, true;
    case unified_addressing:
      return value = 1, true;
    case compute_major:
      return value = device.setting.compute_major, true;
    case compute_minor:
      return value = device.setting.compute_minor, true;
    case max_shared_memory_per_multiprocessor:
      return value = device.most_shared() + 1024, true;
    case max_shared_memory_per_block_optin:
      return value = device.most_shared(), true;
    default:
      return false;
  }
}

// `body(driver, device)` for a device by number.
template <class Body>
CUresult of_device(CUdevice number, Body &&body) {
  return with_driver([&](Driver &driver, Driver::Lock &lock) -> CUresult {
    if (number < 0 || static_cast<size_t>(number) >= driver.devices.size()) {
      return refuse(CUDA_ERROR_INVALID_DEVICE, "there is no device " + std::to_string(number));
    }
    return body(driver, lock, driver.devices[static_cast<size_t>(number)]);
  });
}

// The device behind a context handle that is alive, or null.
Device *device_of(Driver &driver, CUcontext context) {
  for (Device &device : driver.devices) {
    if (reinterpret_cast<CUcontext>(&device) == context) return device.retained > 0 ? &device : nullptr;
  }
  return nullptr;
}

CUresult initialize() {
  Driver &driver = Driver::instance();
  const Driver::Lock lock(driver.mutex);
  if (driver.initialized) return CUDA_SUCCESS;
  Settings settings;
  std::string why;
  if (!read_settings(std::getenv("METASHARD_CUDA_EMULATED"), std::getenv("METASHARD_EMULATOR"), settings, why)) {
    return refuse(CUDA_ERROR_INVALID_VALUE, why);
  }
  driver.settings = settings;
  for (const DeviceSetting &setting : settings.devices) {
    driver.devices.emplace_back(static_cast<int>(driver.devices.size()), setting);
  }
  driver.initialized = true;
  return CUDA_SUCCESS;
}

// The end of a primary context: what it owned is gone. The error of a lost device stays, as the real driver's does.
void tear_down(Driver &driver, Driver::Lock &lock, Device &device) {
  driver.wait(lock, device);
  if (device.retained > 0) return;  // somebody has come back to it meanwhile
  driver.functions.remove_of(device);
  driver.modules.remove_of(device);
  driver.executables.remove_of(device);
  driver.graphs.remove_of(device);
  driver.events.remove_of(device);
  device.streams.clear();
  driver.streams.remove_of(device);
  device.memory.free_all();
  device.peers.clear();
}

}  // namespace

// Tells a program that opens this library as a driver that it is none.
extern "C" __attribute__((visibility("default"))) int metashard_emulated_driver() { return 1; }

MS_ENTRY cuInit(unsigned int flags) {
  if (flags != 0) return refuse(CUDA_ERROR_INVALID_VALUE, "cuInit takes no flags");
  return initialize();
}

MS_ENTRY cuDriverGetVersion(int *version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

MS_ENTRY cuDeviceGetCount(int *count) {
  return with_driver([&](Driver &driver, auto &) { return *count = static_cast<int>(driver.devices.size()), CUDA_SUCCESS; });
}

MS_ENTRY cuDeviceGet(CUdevice *device, int ordinal) {
  return of_device(ordinal, [&](auto &, auto &, Device &found) { return *device = found.ordinal, CUDA_SUCCESS; });
}

MS_ENTRY cuDeviceGetName(char *name, int bytes, CUdevice device) {
  return of_device(device, [&](auto &, auto &, Device &found) {
    std::snprintf(name, static_cast<size_t>(bytes), "Emulated GPU (sm_%d)", found.compute());
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
  return of_device(device, [&](auto &, auto &, Device &found) { return *bytes = found.memory.budget(), CUDA_SUCCESS; });
}

MS_ENTRY cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  return of_device(device, [&](auto &, auto &, Device &found) {
    if (attribute_of(found, static_cast<unsigned>(attribute), *value)) return CUDA_SUCCESS;
    return refuse(CUDA_ERROR_INVALID_VALUE,
                  "the emulated driver has no device attribute " + std::to_string(static_cast<unsigned>(attribute)));
  });
}

MS_ENTRY cuDeviceCanAccessPeer(int *possible, CUdevice device, CUdevice peer) {
  return of_device(device, [&](Driver &driver, auto &, Device &) {
    if (peer < 0 || static_cast<size_t>(peer) >= driver.devices.size()) {
      return refuse(CUDA_ERROR_INVALID_DEVICE, "there is no device " + std::to_string(peer));
    }
    return *possible = device != peer, CUDA_SUCCESS;
  });
}

MS_ENTRY cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  return of_device(device, [&](auto &, auto &, Device &found) {
    found.retained++;
    *context = reinterpret_cast<CUcontext>(&found);
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return of_device(device, [&](Driver &driver, auto &lock, Device &found) {
    if (found.retained == 0) return refuse(CUDA_ERROR_INVALID_CONTEXT, "the primary context is not retained");
    if (--found.retained == 0) tear_down(driver, lock, found);
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuCtxSetCurrent(CUcontext context) {
  return with_driver([&](Driver &driver, auto &) {
    Device *device = context == nullptr ? nullptr : device_of(driver, context);
    if (context != nullptr && device == nullptr) {
      return refuse(CUDA_ERROR_INVALID_CONTEXT, "no such context, or it was released");
    }
    current_device = device;
    return CUDA_SUCCESS;
  });
}

MS_ENTRY cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    const Device *other = device_of(driver, peer);
    if (flags != 0) return refuse(CUDA_ERROR_INVALID_VALUE, "cuCtxEnablePeerAccess takes no flags");
    if (other == nullptr) return refuse(CUDA_ERROR_INVALID_CONTEXT, "no such context, or it was released");
    if (other == &device) return refuse(CUDA_ERROR_INVALID_DEVICE, "a device is no peer of its own");
    if (device.peers.insert(other->ordinal).second) return CUDA_SUCCESS;
    return refuse(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "peer access is enabled already");
  });
}

MS_ENTRY cuCtxDisablePeerAccess(CUcontext peer) {
  return on_device([&](Driver &driver, auto &, Device &device) {
    const Device *other = device_of(driver, peer);
    if (other == nullptr) return refuse(CUDA_ERROR_INVALID_CONTEXT, "no such context, or it was released");
    if (device.peers.erase(other->ordinal) == 1) return CUDA_SUCCESS;
    return refuse(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "peer access is not enabled");
  });
}

}  // namespace metashard::emulator
