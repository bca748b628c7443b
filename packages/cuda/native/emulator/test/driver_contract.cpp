// What the plugin relies on in a CUDA driver, asked of a driver: the emulated one always, a real one where there is a GPU.
// `driver_contract DRIVER [IMAGE]`: IMAGE is a fat binary or PTX of module.cu, which only a real driver needs. Cases that need
// two devices, or the emulator's lazy mode (METASHARD_EMULATOR=lazy), are left out where these are absent. The sticky error
// comes last: on a real GPU it ends the process' use of it.
#include <cstdint>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

#include "test_driver.h"

using namespace metashard::emulator_test;

namespace {

constexpr size_t block = 1 << 20;

const TestDriver *cu;
std::vector<CUcontext> contexts;
std::string image = "the emulator looks at no image";

bool emulated() { return dlsym(cu->library, "metashard_emulated_driver") != nullptr; }
bool lazy() {
  const char *words = std::getenv("METASHARD_EMULATOR");
  return emulated() && words != nullptr && std::strstr(words, "lazy") != nullptr;
}

void use(int device) { OK(cu->cuCtxSetCurrent(contexts[static_cast<size_t>(device)])); }

CUdeviceptr allocate(size_t bytes) {
  CUdeviceptr pointer = 0;
  OK(cu->cuMemAlloc_v2(&pointer, bytes));
  return pointer;
}

CUstream make_stream() {
  CUstream stream = nullptr;
  OK(cu->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  return stream;
}

CUevent make_event() {
  CUevent event = nullptr;
  OK(cu->cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
  return event;
}

unsigned char *make_pinned(size_t bytes) {
  void *memory = nullptr;
  OK(cu->cuMemHostAlloc(&memory, bytes, host_alloc_portable));
  std::memset(memory, 0, bytes);
  return static_cast<unsigned char *>(memory);
}

// The first and the last byte of what a stream brings back, after waiting for it.
bool holds(CUdeviceptr pointer, size_t bytes, int value, CUstream stream) {
  std::vector<unsigned char> read(bytes);
  OK(cu->cuMemcpyDtoHAsync_v2(read.data(), pointer, bytes, stream));
  OK(cu->cuStreamSynchronize(stream));
  return read.front() == value && read.back() == value;
}

void test_devices() {
  int count = 0;
  OK(cu->cuDeviceGetCount(&count));
  EXPECT(count >= 1);
  CUdevice device = -1;
  EXPECT_STATUS(CUDA_ERROR_INVALID_DEVICE, cu->cuDeviceGet(&device, count));
  EXPECT_STATUS(CUDA_ERROR_INVALID_DEVICE, cu->cuDeviceGet(&device, -1));
  CUdeviceptr pointer = 0;
  std::thread([&] { EXPECT_STATUS(CUDA_ERROR_INVALID_CONTEXT, cu->cuMemAlloc_v2(&pointer, 16)); }).join();
  for (int i = 0; i < count && i < 2; i++) {
    OK(cu->cuDeviceGet(&device, i));
    CUcontext context = nullptr;
    OK(cu->cuDevicePrimaryCtxRetain(&context, device));
    contexts.push_back(context);
    CUcontext again = nullptr;
    OK(cu->cuDevicePrimaryCtxRetain(&again, device));
    EXPECT(again == context);
    OK(cu->cuDevicePrimaryCtxRelease_v2(device));
  }
  const char *name = nullptr;
  OK(cu->cuGetErrorName(CUDA_ERROR_OUT_OF_MEMORY, &name));
  EXPECT(name != nullptr && std::string(name) == "CUDA_ERROR_OUT_OF_MEMORY");
  EXPECT_STATUS(CUDA_ERROR_INVALID_VALUE, cu->cuGetErrorName(static_cast<CUresult>(123456), &name));
}

void test_memory() {
  size_t before = 0, after = 0, total = 0;
  OK(cu->cuMemGetInfo_v2(&before, &total));
  EXPECT(before <= total);
  CUdeviceptr pointer = 0;
  EXPECT_STATUS(CUDA_ERROR_INVALID_VALUE, cu->cuMemAlloc_v2(&pointer, 0));
  EXPECT_STATUS(CUDA_ERROR_OUT_OF_MEMORY, cu->cuMemAlloc_v2(&pointer, total + 1));
  pointer = allocate(8 * block);
  EXPECT(pointer % 256 == 0);
  OK(cu->cuMemGetInfo_v2(&after, &total));
  EXPECT(before - after >= 8 * block);
  OK(cu->cuMemFree_v2(pointer));
  OK(cu->cuMemGetInfo_v2(&after, &total));
  EXPECT(after == before);
  EXPECT_STATUS(CUDA_ERROR_INVALID_VALUE, cu->cuMemFree_v2(pointer));
  OK(cu->cuMemFree_v2(0));
  int on_stack = 0;
  EXPECT_STATUS(CUDA_ERROR_INVALID_VALUE, cu->cuMemFreeHost(&on_stack));
  // Recovers: memory that did not fit is no lasting error.
  OK(cu->cuMemFree_v2(allocate(block)));
}

void test_copies() {
  const CUstream stream = make_stream();
  const CUdeviceptr a = allocate(block), b = allocate(block);
  // Pageable memory is read before the call returns.
  std::vector<unsigned char> pageable(block, 7);
  OK(cu->cuMemcpyHtoDAsync_v2(a, pageable.data(), block, stream));
  std::fill(pageable.begin(), pageable.end(), static_cast<unsigned char>(8));
  EXPECT(holds(a, block, 7, stream));
  // And written before it returns.
  OK(cu->cuMemsetD8Async(a, 9, block, stream));
  OK(cu->cuMemcpyDtoHAsync_v2(pageable.data(), a, block, stream));
  EXPECT(pageable.front() == 9 && pageable.back() == 9);
  // In the order of the stream.
  OK(cu->cuMemsetD8Async(a, 1, block, stream));
  OK(cu->cuMemcpyDtoDAsync_v2(b, a, block, stream));
  OK(cu->cuMemsetD8Async(a, 2, block, stream));
  EXPECT(holds(b, block, 1, stream));
  EXPECT(holds(a, block, 2, stream));
  // Pinned memory that is not changed before the stream has come to it.
  unsigned char *pinned = make_pinned(block);
  std::memset(pinned, 3, block);
  OK(cu->cuMemcpyHtoDAsync_v2(a, pinned, block, stream));
  EXPECT(holds(a, block, 3, stream));
  EXPECT_STATUS(CUDA_ERROR_INVALID_VALUE, cu->cuMemcpyHtoDAsync_v2(a, pinned, 64 * block, stream));
  OK(cu->cuMemFreeHost(pinned));
  OK(cu->cuStreamDestroy_v2(stream));
  OK(cu->cuMemFree_v2(a));
  OK(cu->cuMemFree_v2(b));
}

// What a forgotten wait does: only the emulator's lazy mode shows it every time.
void test_late_copies() {
  if (!lazy()) return;
  const CUstream stream = make_stream(), other = make_stream();
  const CUdeviceptr a = allocate(block);
  unsigned char *pinned = make_pinned(block);
  std::memset(pinned, 4, block);
  OK(cu->cuMemcpyHtoDAsync_v2(a, pinned, block, stream));
  std::memset(pinned, 5, block);  // too early
  EXPECT(holds(a, block, 5, stream));
  // Another stream without an event sees what was there before; with an event, what was meant.
  OK(cu->cuMemsetD8Async(a, 6, block, stream));
  EXPECT(holds(a, block, 5, other));
  const CUevent event = make_event();
  OK(cu->cuEventRecord(event, stream));
  OK(cu->cuStreamWaitEvent(other, event, 0));
  EXPECT(holds(a, block, 6, other));
  OK(cu->cuMemFreeHost(pinned));
  OK(cu->cuMemFree_v2(a));
}

void test_events() {
  const CUstream stream = make_stream(), other = make_stream();
  const CUevent event = make_event();
  OK(cu->cuEventQuery(event));  // never recorded: nothing to wait for
  OK(cu->cuEventSynchronize(event));
  OK(cu->cuStreamWaitEvent(stream, event, 0));
  const CUdeviceptr a = allocate(16 * block);
  for (int round = 1; round <= 8; round++) {
    OK(cu->cuMemsetD8Async(a, static_cast<unsigned char>(round), 16 * block, stream));
    OK(cu->cuEventRecord(event, stream));
    OK(cu->cuStreamWaitEvent(other, event, 0));
    EXPECT(holds(a, 16 * block, round, other));
    OK(cu->cuEventQuery(event));
  }
  OK(cu->cuMemsetD8Async(a, 100, 16 * block, stream));
  OK(cu->cuEventRecord(event, stream));
  CUresult asked = CUDA_ERROR_NOT_READY;
  while (asked == CUDA_ERROR_NOT_READY) asked = cu->cuEventQuery(event);  // asking makes progress, too
  EXPECT(asked == CUDA_SUCCESS);
  OK(cu->cuEventSynchronize(event));
  OK(cu->cuEventDestroy_v2(event));
  OK(cu->cuStreamDestroy_v2(stream));
  OK(cu->cuStreamDestroy_v2(other));
  OK(cu->cuMemFree_v2(a));
}

void test_peers() {
  if (contexts.size() < 2) return;
  use(0);
  const CUstream near = make_stream();
  const CUdeviceptr a = allocate(block);
  use(1);
  const CUstream far = make_stream();
  const CUdeviceptr b = allocate(block);
  for (int round = 1; round <= 8; round++) {
    use(0);
    const CUevent filled = make_event();
    OK(cu->cuMemsetD8Async(a, static_cast<unsigned char>(round), block, near));
    OK(cu->cuEventRecord(filled, near));
    use(1);
    OK(cu->cuStreamWaitEvent(far, filled, 0));
    OK(cu->cuMemcpyPeerAsync(b, contexts[1], a, contexts[0], block, far));
    EXPECT(holds(b, block, round, far));
    use(0);
    OK(cu->cuEventDestroy_v2(filled));
  }
  use(1);
  EXPECT_STATUS(CUDA_ERROR_INVALID_HANDLE, cu->cuEventRecord(make_event(), near));  // of another device
  int possible = 0;
  OK(cu->cuDeviceCanAccessPeer(&possible, 0, 1));
  use(0);
  if (possible != 0) {
    OK(cu->cuCtxEnablePeerAccess(contexts[1], 0));
    EXPECT_STATUS(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, cu->cuCtxEnablePeerAccess(contexts[1], 0));
    OK(cu->cuCtxDisablePeerAccess(contexts[1]));
  }
}

void test_capture() {
  const CUstream stream = make_stream(), side = make_stream();
  const CUevent fork = make_event(), join = make_event();
  const CUdeviceptr a = allocate(4096);
  unsigned char *pinned = make_pinned(4096);
  // A graph with a side branch: nothing runs while it is made, and each launch runs it once.
  OK(cu->cuMemsetD8Async(a, 9, 4096, stream));
  OK(cu->cuStreamSynchronize(stream));
  OK(cu->cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  OK(cu->cuMemsetD8Async(a, 1, 4096, stream));
  OK(cu->cuEventRecord(fork, stream));
  OK(cu->cuStreamWaitEvent(side, fork, 0));
  OK(cu->cuMemsetD8Async(a, 2, 1024, side));
  OK(cu->cuMemsetD8Async(a + 2048, 3, 1024, stream));
  OK(cu->cuEventRecord(join, side));
  OK(cu->cuStreamWaitEvent(stream, join, 0));
  OK(cu->cuMemcpyDtoHAsync_v2(pinned, a, 4096, stream));
  CUgraph graph = nullptr;
  CUgraphExec executable = nullptr;
  OK(cu->cuStreamEndCapture(stream, &graph));
  EXPECT(holds(a, 4096, 9, stream));
  OK(cu->cuGraphInstantiateWithFlags(&executable, graph, 0));
  OK(cu->cuGraphDestroy(graph));
  for (int round = 0; round < 3; round++) {
    std::memset(pinned, 0, 4096);
    OK(cu->cuGraphLaunch(executable, stream));
    OK(cu->cuStreamSynchronize(stream));
    EXPECT(pinned[0] == 2 && pinned[1024] == 1 && pinned[2048] == 3 && pinned[4095] == 1);
  }
  OK(cu->cuGraphExecDestroy(executable));
  EXPECT(cu->cuEventSynchronize(join) != CUDA_SUCCESS);  // was recorded in a capture only
  OK(cu->cuMemFreeHost(pinned));
  OK(cu->cuMemFree_v2(a));
}

void test_broken_captures() {
  const CUstream stream = make_stream(), side = make_stream();
  const CUevent fork = make_event();
  const CUdeviceptr a = allocate(4096);
  CUgraph graph = nullptr;
  CUdeviceptr more = 0;
  EXPECT(cu->cuStreamEndCapture(stream, &graph) != CUDA_SUCCESS);  // none was begun
  // Waiting for what is only being captured.
  OK(cu->cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  EXPECT_STATUS(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cu->cuStreamSynchronize(stream));
  EXPECT(cu->cuStreamEndCapture(stream, &graph) == static_cast<CUresult>(901));  // invalidated
  // Allocating on the capturing thread; on another it is allowed.
  OK(cu->cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  std::thread([&] {
    use(0);
    OK(cu->cuMemFree_v2(allocate(4096)));
  }).join();
  EXPECT_STATUS(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cu->cuMemAlloc_v2(&more, 4096));
  EXPECT(cu->cuStreamEndCapture(stream, &graph) == static_cast<CUresult>(901));
  // A stream that joined and never came back.
  OK(cu->cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  OK(cu->cuMemsetD8Async(a, 1, 64, stream));
  OK(cu->cuEventRecord(fork, stream));
  OK(cu->cuStreamWaitEvent(side, fork, 0));
  OK(cu->cuMemsetD8Async(a, 2, 64, side));
  EXPECT(cu->cuStreamEndCapture(stream, &graph) == static_cast<CUresult>(904));  // unjoined
  // Streams are as good as new after that.
  OK(cu->cuMemsetD8Async(a, 5, 64, side));
  EXPECT(holds(a, 64, 5, side));
  OK(cu->cuMemFree_v2(a));
}

struct Kernels {
  CUmodule module = nullptr;
  CUstream stream = nullptr;

  bool load() {
    stream = make_stream();
    if (cu->cuModuleLoadData(&module, image.c_str()) == CUDA_SUCCESS) return true;
    if (emulated()) OK(cu->cuModuleLoadData(&module, image.c_str()));
    return false;
  }
  CUfunction function(const char *name) const {
    CUfunction found = nullptr;
    OK(cu->cuModuleGetFunction(&found, module, name));
    return found;
  }
  CUresult launch(CUfunction function, unsigned blocks, unsigned threads, unsigned shared, void **arguments) const {
    return cu->cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared, stream, arguments, nullptr);
  }
};

void test_kernels(const Kernels &kernels) {
  CUfunction missing = nullptr;
  EXPECT_STATUS(CUDA_ERROR_NOT_FOUND, cu->cuModuleGetFunction(&missing, kernels.module, "no_such_kernel"));
  const CUfunction fill = kernels.function("example_fill");
  CUdeviceptr out = allocate(4096);
  unsigned value = 0x05050505;
  int count = 1024;
  void *arguments[] = {&out, &value, &count};
  OK(kernels.launch(fill, 4, 256, 0, arguments));
  value = 0;  // arguments are taken at the call
  EXPECT(holds(out, 4096, 5, kernels.stream));
  EXPECT_STATUS(CUDA_ERROR_INVALID_VALUE, kernels.launch(fill, 0, 256, 0, arguments));
  EXPECT_STATUS(CUDA_ERROR_INVALID_VALUE, kernels.launch(fill, 1, 1025, 0, arguments));
  EXPECT_STATUS(CUDA_ERROR_INVALID_VALUE, kernels.launch(fill, 1, 32, 49 << 10, arguments));
  const auto most_shared = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
  OK(cu->cuFuncSetAttribute(fill, most_shared, 49 << 10));
  OK(kernels.launch(fill, 1, 32, 49 << 10, arguments));
  EXPECT_STATUS(CUDA_ERROR_INVALID_VALUE, cu->cuFuncSetAttribute(fill, most_shared, 1 << 20));
  // In a graph, too, with the arguments of the capture.
  value = 0x06060606;
  OK(cu->cuStreamBeginCapture_v2(kernels.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  OK(kernels.launch(fill, 4, 256, 0, arguments));
  value = 0;
  CUgraph graph = nullptr;
  CUgraphExec executable = nullptr;
  OK(cu->cuStreamEndCapture(kernels.stream, &graph));
  OK(cu->cuGraphInstantiateWithFlags(&executable, graph, 0));
  OK(cu->cuGraphLaunch(executable, kernels.stream));
  EXPECT(holds(out, 4096, 6, kernels.stream));
  OK(cu->cuGraphExecDestroy(executable));
  OK(cu->cuGraphDestroy(graph));
  OK(cu->cuMemFree_v2(out));
}

// A kernel that touches what it may not: the launch succeeds, and everything after it fails, on this device only.
void test_sticky_error(const Kernels &kernels) {
  CUdeviceptr out = allocate(4096), more = 0;
  const CUdeviceptr kept = out;
  long long offset = 1ll << 31;
  void *arguments[] = {&out, &offset};
  const CUevent event = make_event();
  OK(kernels.launch(kernels.function("wrong_address"), 1, 32, 0, arguments));
  cu->cuEventRecord(event, kernels.stream);
  EXPECT_STATUS(CUDA_ERROR_ILLEGAL_ADDRESS, cu->cuStreamSynchronize(kernels.stream));
  EXPECT_STATUS(CUDA_ERROR_ILLEGAL_ADDRESS, cu->cuMemAlloc_v2(&more, 4096));
  EXPECT_STATUS(CUDA_ERROR_ILLEGAL_ADDRESS, cu->cuMemFree_v2(kept));
  EXPECT_STATUS(CUDA_ERROR_ILLEGAL_ADDRESS, cu->cuEventSynchronize(event));
  EXPECT_STATUS(CUDA_ERROR_ILLEGAL_ADDRESS, cu->cuMemsetD8Async(kept, 0, 64, kernels.stream));
  EXPECT(!emulated() || cu->text(CUDA_ERROR_ILLEGAL_ADDRESS).find("kernel wrong_address, block (0,0,0), thread (") == 0);
  if (contexts.size() < 2) return;
  use(1);
  OK(cu->cuMemFree_v2(allocate(4096)));
}

}  // namespace

int main(int count, char **arguments) {
  const TestDriver driver(arguments[1]);
  cu = &driver;
  if (count > 2) {
    std::ifstream file(arguments[2], std::ios::binary);
    image.assign(std::istreambuf_iterator<char>(file), {});
  }
  if (emulated()) EXPECT_STATUS(CUDA_ERROR_NOT_INITIALIZED, cu->cuCtxSetCurrent(nullptr));
  OK(cu->cuInit(0));
  test_devices();
  use(0);
  test_memory();
  test_copies();
  test_late_copies();
  test_events();
  test_peers();
  use(0);
  test_capture();
  test_broken_captures();
  Kernels kernels;
  if (kernels.load()) {
    test_kernels(kernels);
    test_sticky_error(kernels);
  }
  return report();
}
