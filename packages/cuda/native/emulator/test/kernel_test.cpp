// Runs the kernels of example.cu against plain loops, those of wrong.cu for their errors (a device each: errors are sticky),
// and prints a hash of all results, which has to be the same for every seed. `kernel_test DRIVER`, with
// METASHARD_CUDA_EMULATED naming at least 20 devices.
#include <cmath>
#include <cstdint>
#include <vector>

#include "../../simt/simt_half.h"
#include "test_driver.h"

using namespace metashard::emulator_test;

namespace {

struct Size {
  unsigned x = 1, y = 1;
};

const TestDriver *cu;
uint64_t results_hash = 14695981039346656037u;  // FNV-1a

void add_to_hash(const void *bytes, size_t count) {
  const auto *byte = static_cast<const unsigned char *>(bytes);
  for (size_t i = 0; i < count; i++) results_hash = (results_hash ^ byte[i]) * 1099511628211u;
}

// One device with a stream and the kernels, and what its memory holds.
class Gpu {
 public:
  explicit Gpu(int ordinal) {
    OK(cu->cuDevicePrimaryCtxRetain(&context_, ordinal));
    OK(cu->cuCtxSetCurrent(context_));
    OK(cu->cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING));
    OK(cu->cuModuleLoadData(&module_, "any image"));
  }

  template <class T>
  CUdeviceptr upload(const std::vector<T> &values) {
    CUdeviceptr pointer = 0;
    OK(cu->cuMemAlloc_v2(&pointer, values.size() * sizeof(T)));
    OK(cu->cuMemcpyHtoDAsync_v2(pointer, values.data(), values.size() * sizeof(T), stream_));
    return pointer;
  }

  template <class T>
  std::vector<T> download(CUdeviceptr pointer, size_t count) {
    std::vector<T> values(count);
    OK(cu->cuMemcpyDtoHAsync_v2(values.data(), pointer, count * sizeof(T), stream_));
    add_to_hash(values.data(), count * sizeof(T));
    return values;
  }

  template <class... A>
  CUresult run(const char *kernel, Size grid, Size block, unsigned shared, A... arguments) {
    CUfunction function = nullptr;
    OK(cu->cuModuleGetFunction(&function, module_, kernel));
    void *pointers[] = {&arguments..., nullptr};
    return cu->cuLaunchKernel(function, grid.x, grid.y, 1, block.x, block.y, 1, shared, stream_, pointers, nullptr);
  }

  CUresult synchronize() { return cu->cuStreamSynchronize(stream_); }

 private:
  CUcontext context_ = nullptr;
  CUstream stream_ = nullptr;
  CUmodule module_ = nullptr;
};

uint32_t number(uint32_t &state) { return state = state * 1664525u + 1013904223u; }  // Numerical Recipes

void test_softmax(Gpu &gpu) {
  constexpr size_t rows = 37, columns = 300;
  uint32_t state = 1;
  std::vector<ms_half> x(rows * columns);
  for (auto &value : x) value = ms_float_to_half(static_cast<float>(static_cast<int32_t>(number(state))) * 0x1p-29f);
  const CUdeviceptr in = gpu.upload(x), out = gpu.upload(std::vector<float>(x.size()));
  const CUdeviceptr narrow = gpu.upload(std::vector<uint16_t>(x.size())), histogram = gpu.upload(std::vector<uint32_t>(2));
  OK(gpu.run("example_softmax", {rows}, {128}, columns * 4, in, out, narrow, histogram, static_cast<int>(columns)));
  const auto got = gpu.download<float>(out, x.size());
  const auto rounded = gpu.download<ms_bfloat16>(narrow, x.size());
  const auto signs = gpu.download<uint32_t>(histogram, 2);
  uint32_t negative = 0;
  double worst = 0;
  bool rounds = true;
  for (size_t row = 0; row < rows; row++) {
    double largest = -INFINITY, sum = 0;
    for (size_t i = 0; i < columns; i++) largest = std::max<double>(largest, to_float(x[row * columns + i]));
    for (size_t i = 0; i < columns; i++) sum += std::exp(to_float(x[row * columns + i]) - largest);
    for (size_t i = 0; i < columns; i++) {
      const size_t at = row * columns + i;
      worst = std::max(worst, std::fabs(got[at] - std::exp(to_float(x[at]) - largest) / sum));
      rounds = rounds && rounded[at].bits == ms_float_to_bfloat16(got[at]).bits;
      if (to_float(x[at]) < 0) negative++;
    }
  }
  EXPECT(worst < 1e-6);
  EXPECT(rounds);
  EXPECT(signs[0] == negative && signs[1] == rows * columns - negative);
}

void test_product(Gpu &gpu) {
  constexpr int rows = 48, columns = 40, depth = 224;
  uint32_t state = 2;
  std::vector<int8_t> a(rows * depth), b(columns * depth);
  for (auto &value : a) value = static_cast<int8_t>(number(state) >> 24);
  for (auto &value : b) value = static_cast<int8_t>(number(state) >> 24);
  const CUdeviceptr out = gpu.upload(std::vector<int>(rows * columns));
  OK(gpu.run("example_product", {columns / 8, rows / 16}, {32}, 0, gpu.upload(a), gpu.upload(b), out, rows, columns, depth));
  const auto got = gpu.download<int>(out, rows * columns);
  bool equal = true;
  for (int i = 0; i < rows; i++) {
    for (int j = 0; j < columns; j++) {
      int sum = 0;
      for (int k = 0; k < depth; k++) sum += a[static_cast<size_t>(i * depth + k)] * b[static_cast<size_t>(j * depth + k)];
      equal = equal && got[static_cast<size_t>(i * columns + j)] == sum;
    }
  }
  EXPECT(equal);
}

int dot4(int a, int b) {
  int sum = 5;
  for (int i = 0; i < 4; i++) sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return sum;
}

void test_votes(Gpu &gpu) {
  constexpr unsigned threads = 96;
  uint32_t state = 3;
  std::vector<int> x(threads);
  for (auto &value : x) value = static_cast<int>(number(state) >> 28) - 8;
  const CUdeviceptr out = gpu.upload(std::vector<uint32_t>(threads * 6));
  OK(gpu.run("example_votes", {1}, {threads}, 0, gpu.upload(x), out));
  const auto got = gpu.download<uint32_t>(out, threads * 6);
  bool equal = true;
  for (unsigned t = 0; t < threads; t++) {
    uint32_t ballot = 0, match = 0, count = 0, any = 0, sum = 1;
    for (unsigned other = 0; other < threads; other++) {
      count += x[other] > 0 ? 1 : 0;
      any |= x[other] == 7 ? 1 : 0;
      if (other / 32 != t / 32) continue;
      ballot |= x[other] > 0 ? 1u << other % 32 : 0;
      match |= x[other] == x[t] ? 1u << other % 32 : 0;
      sum += static_cast<uint32_t>(x[other]);
    }
    const uint32_t wanted[] = {ballot, match, count, any, static_cast<uint32_t>(dot4(x[t], 0x01ff02fe)), sum};
    equal = equal && std::memcmp(wanted, &got[t * 6], sizeof wanted) == 0;
  }
  EXPECT(equal);
}

void test_shuffles(Gpu &gpu) {
  std::vector<float> x(64);
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i);
  const CUdeviceptr out = gpu.upload(std::vector<float>(256));
  OK(gpu.run("example_rotate", {1}, {64}, 0, gpu.upload(x), out, 3));
  const auto got = gpu.download<float>(out, 256);
  bool equal = true;
  for (int t = 0; t < 64; t++) {
    const int group = t / 8 * 8, lane = t % 8;
    const int wanted[] = {group + (lane + 3) % 8, lane < 3 ? t : t - 3, lane + 3 > 7 ? t : t + 3, group + (lane ^ 3)};
    for (int i = 0; i < 4; i++) equal = equal && got[static_cast<size_t>(t * 4 + i)] == static_cast<float>(wanted[i]);
  }
  EXPECT(equal);
}

void test_async_copies(Gpu &gpu) {
  std::vector<int> x(64 * 5 * 4);
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<int>(i * 7);
  const CUdeviceptr in = gpu.upload(x), out = gpu.upload(std::vector<int>(x.size()));
  OK(gpu.run("example_copy_through_shared", {1}, {64}, 0, in, out, 5));
  EXPECT(gpu.download<int>(out, x.size()) == x);
  OK(gpu.run("wrong_forgotten_wait", {1}, {32}, 0, in, out));
  const auto late = gpu.download<int>(out, 128);
  EXPECT(late[5] == -1);  // still the poison
}

void test_many_blocks(Gpu &gpu) {
  constexpr int count = 1000000;
  const CUdeviceptr a = gpu.upload(std::vector<uint32_t>(count, 40)), b = gpu.upload(std::vector<uint32_t>(count));
  OK(gpu.run("example_fill", {(count + 255) / 256}, {256}, 0, b, 2u, count));
  OK(gpu.run("example_add", {(count + 255) / 256}, {256}, 0, a, b, b, count));
  const auto got = gpu.download<uint32_t>(b, count);
  EXPECT(got == std::vector<uint32_t>(count, 42));
}

struct Wrong {
  const char *kernel;
  unsigned threads;
  CUresult status;
  const char *says;
};

// Every one of them with (out, 1 << 20 or 0): kernels that take fewer arguments ignore the rest.
constexpr Wrong wrongs[] = {
    {"wrong_address", 32, CUDA_ERROR_ILLEGAL_ADDRESS, "kernel wrong_address, block (0,0,0), thread (0,0,0): accesses 0x"},
    {"wrong_null", 1, CUDA_ERROR_ILLEGAL_ADDRESS, "null"},
    {"wrong_trap", 32, CUDA_ERROR_LAUNCH_FAILED, "thread (3,0,0): calls __trap()"},
    {"wrong_division", 32, CUDA_ERROR_LAUNCH_FAILED, "divides an integer by zero"},
    {"wrong_stack", 1, CUDA_ERROR_HARDWARE_STACK_ERROR, "65536 bytes of local memory"},
    {"wrong_two_barriers", 64, CUDA_ERROR_LAUNCH_FAILED, "meets another barrier than the 32 threads that wait at"},
    {"wrong_missed_barrier", 64, CUDA_ERROR_LAUNCH_FAILED, "barrier"},
    {"wrong_exit_first", 64, CUDA_ERROR_LAUNCH_FAILED, "they have returned"},
    {"wrong_mask", 32, CUDA_ERROR_LAUNCH_FAILED, "whose mask 0000ffff does not name it"},
    {"wrong_absent_lane", 32, CUDA_ERROR_LAUNCH_FAILED, "that lane takes no part"},
    {"wrong_exited_lane", 32, CUDA_ERROR_LAUNCH_FAILED, "lane"},
    {"wrong_half_meeting", 32, CUDA_ERROR_LAUNCH_TIMEOUT, "the block is stuck: 16 of 32 threads wait at the barrier"},
    {"wrong_dynamic_shared", 32, CUDA_ERROR_ILLEGAL_ADDRESS, "past the end of its 64 bytes of dynamic shared memory"},
    {"wrong_misaligned_copy", 1, CUDA_ERROR_MISALIGNED_ADDRESS, "no multiple of 16"},
    {"wrong_copy_target", 1, CUDA_ERROR_INVALID_ADDRESS_SPACE, "no shared memory"},
};

void test_wrong(const Wrong &wrong, int device, bool in_order) {
  Gpu gpu(device);
  const std::string kernel = wrong.kernel;
  CUdeviceptr out = gpu.upload(std::vector<int>(4096));
  CUdeviceptr first = kernel == "wrong_null" ? 0 : out;
  long long second = kernel == "wrong_address" ? 1ll << 20 : kernel == "wrong_dynamic_shared" ? 64 : 0;
  if (kernel == "wrong_misaligned_copy" || kernel == "wrong_copy_target") second = static_cast<long long>(out);
  OK(gpu.run(wrong.kernel, {1}, {wrong.threads}, 64, first, second));
  EXPECT_STATUS(wrong.status, gpu.synchronize());
  const std::string text = cu->text(wrong.status);
  const bool says = text.find(wrong.says) != text.npos || (!in_order && text.find(wrong.kernel) != text.npos);
  if (!says) std::printf("%s says: %s\n", wrong.kernel, text.c_str());
  EXPECT(says);
  CUdeviceptr more = 0;
  EXPECT_STATUS(wrong.status, cu->cuMemAlloc_v2(&more, 16));
}

// Arguments that lead nowhere are caught before the kernel runs, inside of structs by their value.
void test_misdirected_arguments(int device) {
  Gpu other(device), gpu(device + 1);
  Gpu *unused = &other;
  (void)unused;
  std::vector<int> host(64);
  OK(gpu.run("example_fill", {1}, {32}, 0, host.data(), 1u, 16));
  EXPECT_STATUS(CUDA_ERROR_ILLEGAL_ADDRESS, gpu.synchronize());
  EXPECT(cu->text(CUDA_ERROR_ILLEGAL_ADDRESS).find("kernel example_fill: argument 0") == 0);
}

void test_half_conversions() {
  bool equal = true;
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const ms_half half = {static_cast<uint16_t>(bits)};
    const bool nan = (bits & 0x7fff) > 0x7c00;
    equal = equal && (nan ? ms_float_to_half(to_float(half)).bits == 0x7fff : ms_float_to_half(to_float(half)).bits == bits);
    const ms_bfloat16 narrow = {static_cast<uint16_t>(bits)};
    const bool narrow_nan = (bits & 0x7fff) > 0x7f80;
    equal = equal && ms_float_to_bfloat16(to_float(narrow)).bits == (narrow_nan ? 0x7fff : bits);
  }
  EXPECT(equal);
  uint32_t state = 4;
  bool rounds = true;
  for (int i = 0; i < 2000000; i++) {  // against the compiler's own conversion
    const uint32_t bits = i % 2 == 0 ? number(state) : 0x33000000u + number(state) % 0x15000000u;
    const float value = ms_float_of(bits);
    const _Float16 wanted = static_cast<_Float16>(value);
    uint16_t wanted_bits = 0;
    std::memcpy(&wanted_bits, &wanted, 2);
    rounds = rounds && (value != value || ms_float_to_half(value).bits == wanted_bits);
  }
  EXPECT(rounds);
}

}  // namespace

int main(int, char **arguments) {
  const TestDriver driver(arguments[1]);
  cu = &driver;
  OK(cu->cuInit(0));
  const char *words = std::getenv("METASHARD_EMULATOR");
  const bool in_order = words == nullptr || std::strstr(words, "seed") == nullptr;
  {
    Gpu gpu(0);
    test_softmax(gpu);
    test_product(gpu);
    test_votes(gpu);
    test_shuffles(gpu);
    test_async_copies(gpu);
    test_many_blocks(gpu);
  }
  int device = 1;
  for (const Wrong &wrong : wrongs) test_wrong(wrong, device++, in_order);
  test_misdirected_arguments(device);
  test_half_conversions();
  std::printf("results %016llx\n", static_cast<unsigned long long>(results_hash));
  return report();
}
