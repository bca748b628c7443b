// The emulated driver: a libcuda whose devices are host memory and host threads. One lock guards all of its state; what streams
// run (kernels, copies) runs without it, on a thread a device. Orders, waits and laziness are in order.cpp; entry points are in
// the file of their subject. The state is never destroyed: its threads wait on it until the process ends.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "../runtime/kernel_module.h"
#include "device_memory.h"
#include "settings.h"
#include "status.h"

#define MS_ENTRY extern "C" __attribute__((visibility("default"))) CUresult

namespace metashard::emulator {

// Every entry point that the plugin's table has, so that a definition of another type is an error. One that is missing here is
// found by whoever opens the library: the plugin.
#define MS_CU(name, parameters) MS_ENTRY name parameters;
#include "../../cu_functions.def"
#undef MS_CU

struct Device;
struct Stream;
struct Capture;

struct Outcome {
  CUresult status = CUDA_SUCCESS;
  std::string why;
};
using Work = std::function<Outcome()>;

// A place in the order of a stream: reached when everything before it has run. Or a node of a graph that is being captured.
struct Point {
  Stream *stream = nullptr;  // valid while not reached
  uint64_t number = 0;
  bool reached = false;
  std::shared_ptr<Capture> capture;
  size_t node = 0;
};
using PointRef = std::shared_ptr<Point>;

struct Operation {
  Work work;        // may be empty
  PointRef wait;    // not before this is reached
  PointRef signal;  // reached by this
  uint64_t number = 0;  // in its stream, from 1
  uint64_t ticket = 0;  // over all streams: the order of the program
};

struct GraphNode {
  Work work;
  std::vector<size_t> after;  // nodes
};
struct Graph {
  Device &device;
  std::vector<GraphNode> nodes;
};
struct GraphExecutable {
  Device &device;
  std::shared_ptr<const Graph> graph;
};

enum class CaptureMode : unsigned { global = 0, thread_local_ = 1, relaxed = 2 };

struct Capture {
  std::shared_ptr<Graph> graph;
  Stream *origin = nullptr;
  CaptureMode mode = CaptureMode::global;
  std::thread::id thread;
  std::set<Stream *> streams;
  bool invalidated = false;
  bool ended = false;
};

struct Stream {
  Device &device;
  std::deque<Operation> queue;
  uint64_t submitted = 0;
  uint64_t completed = 0;
  uint64_t demanded = 0;  // lazy mode: how far somebody waits for
  std::shared_ptr<Capture> capture;
  std::vector<size_t> last_nodes;  // of the capture: what the next node comes after
};

struct Event {
  Device &device;
  PointRef point;
};

struct Function {
  Device &device;
  const KernelEntry *kernel;
  int most_dynamic_shared;  // as cuFuncSetAttribute allows
};
struct Module {
  Device &device;
  std::map<std::string, std::shared_ptr<Function>> functions;  // those asked for
};

// A device and its primary context, which are one here.
struct Device {
  int ordinal;
  DeviceSetting setting;
  DeviceMemory memory;
  int retained = 0;  // of the primary context
  Outcome lost;      // the sticky error, once there is one
  std::set<int> peers;  // ordinals whose memory kernels may touch
  std::vector<Stream *> streams;
  uint64_t launches = 0;
  uint64_t random_state = 1;
  bool has_thread = false;
  bool idle = false;
  std::condition_variable wake;

  Device(int ordinal, const DeviceSetting &setting) : ordinal(ordinal), setting(setting), memory(setting.bytes) {}
  int compute() const { return setting.compute_major * 10 + setting.compute_minor; }
  int most_shared() const;  // bytes a block may be given at most
};

// Objects behind handles, so that a handle that is none is an error.
template <class T>
class Handles {
 public:
  T *add(std::shared_ptr<T> object) { return objects_.emplace(object.get(), object).first->first; }
  std::shared_ptr<T> find(const void *handle) const {
    const auto found = objects_.find(static_cast<T *>(const_cast<void *>(handle)));
    return found == objects_.end() ? nullptr : found->second;
  }
  void remove(const std::shared_ptr<T> &object) { objects_.erase(object.get()); }
  void remove_of(const Device &device) {
    std::erase_if(objects_, [&](const auto &entry) { return &entry.second->device == &device; });
  }

 private:
  std::map<T *, std::shared_ptr<T>> objects_;
};

struct Driver {
  std::mutex mutex;
  std::condition_variable progress;  // for hosts that wait: something has completed
  int waiting_hosts = 0;
  uint64_t tickets = 0;
  bool initialized = false;
  Settings settings;
  std::deque<Device> devices;
  std::map<uintptr_t, size_t> pinned;
  Handles<Stream> streams;
  Handles<Event> events;
  Handles<Graph> graphs;
  Handles<GraphExecutable> executables;
  Handles<Module> modules;
  Handles<Function> functions;
  const KernelModule *kernels = nullptr;

  static Driver &instance();

  // ---- order.cpp; the lock is held
  // Appends to the stream.
  void enqueue(Stream &stream, Operation operation);
  using Lock = std::unique_lock<std::mutex>;
  void wait(Lock &lock, const PointRef &point);
  void wait(Lock &lock, const std::shared_ptr<Stream> &stream);
  void wait(Lock &lock, Device &device);
  // Lazy mode: `point` may now be reached, though nobody waits.
  void demand(const Point &point);
  void start_thread(Device &device);

  // ---- graphs.cpp
  // Appends to the stream, or to the graph it is being captured into. Waiting for an event of a capture takes the stream in.
  CUresult submit(Stream &stream, Operation operation);
  // Fails, and invalidates the capture, where the calling thread may not make this call because of a capture.
  CUresult check_no_capture(const char *call);

  // ---- streams.cpp
  // The current device's stream behind a handle, or null after telling why in `status`.
  std::shared_ptr<Stream> stream_of(const Device &device, CUstream handle, CUresult &status);

  // ---- memory.cpp
  // The device whose allocation holds all of the range, or null.
  Device *holder(uintptr_t address, size_t bytes);
  bool is_pinned(const void *address, size_t bytes) const;

 private:
  void run_streams(Device &device);
  std::shared_ptr<Stream> next_stream(Device &device);
  void finish(Device &device, Stream &stream, const Operation &operation, Outcome outcome);
  void demand(Stream &stream, uint64_t number);
};

// The calling thread's current context.
extern thread_local Device *current_device;

// Runs the body of an entry point: `body(driver, lock)`. Nothing is thrown out of it.
template <class Body>
CUresult with_driver(Body &&body) noexcept {
  try {
    Driver &driver = Driver::instance();
    Driver::Lock lock(driver.mutex);
    if (!driver.initialized) return refuse(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
    return body(driver, lock);
  } catch (const std::bad_alloc &) {
    return refuse(CUDA_ERROR_OUT_OF_MEMORY, "host memory is exhausted");
  } catch (...) {
    return CUDA_ERROR_UNKNOWN;
  }
}

// The same, on the thread's current device, once that is there and not lost: `body(driver, lock, device)`.
template <class Body>
CUresult on_device(Body &&body) noexcept {
  return with_driver([&](Driver &driver, Driver::Lock &lock) -> CUresult {
    Device *device = current_device;
    if (device == nullptr) return refuse(CUDA_ERROR_INVALID_CONTEXT, "the thread has no current context");
    if (device->retained == 0) return refuse(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the thread's context was released");
    if (device->lost.status != CUDA_SUCCESS) return refuse(device->lost.status, device->lost.why);
    return body(driver, lock, *device);
  });
}

// Forgets the object behind a handle; `missing` is said of a handle that is none.
template <class T>
CUresult destroy(Handles<T> Driver::*handles, const void *handle, const char *missing) noexcept {
  return on_device([&](Driver &driver, auto &, Device &) {
    const auto object = (driver.*handles).find(handle);
    if (object == nullptr) return refuse(CUDA_ERROR_INVALID_HANDLE, missing);
    (driver.*handles).remove(object);
    return CUDA_SUCCESS;
  });
}

// What a call that has waited returns: the device may have been lost meanwhile.
inline CUresult state_of(const Device &device) {
  return device.lost.status == CUDA_SUCCESS ? CUDA_SUCCESS : refuse(device.lost.status, device.lost.why);
}

}  // namespace metashard::emulator
