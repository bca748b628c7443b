// Ceilings of the machine, for benchmarks to be compared with: how fast memory is read, and how many int8 and float operations a second the registers
// give, on N threads. A server over standard input and output, so that each row can be measured beside its ceiling:
//   read      GB/s of plain reading, buffers far larger than the caches, four streams a thread
//   vnni      TOPS of vpdpbusd in 512 bits (256 where the processor has no more), 0 without it
//   amx       TOPS of tdpbssd, 0 without it
//   fma       TFLOPS of float32 multiply-add
// Answers one number a line. Not part of metashard: it shares no code with the kernels that it judges.
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t read_bytes = size_t(1) << 30;  // of all threads together
constexpr long compute_rounds = 10'000'000;

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds from the moment all threads are ready until the last has finished.
double run_threads(int threads, const std::function<void(int)> &body) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; i++) {
    workers.emplace_back([&, i] {
      ready++;
      while (!go.load()) _mm_pause();
      body(i);
    });
  }
  while (ready.load() < threads) std::this_thread::yield();
  const double start = seconds_now();
  go = true;
  for (std::thread &worker : workers) worker.join();
  return seconds_now() - start;
}

std::atomic<uint64_t> sink{0};

__attribute__((target("avx512f"))) uint64_t read_512(const char *bytes, size_t count) {
  const size_t stream = count / 4;
  __m512i sums[4] = {};
  for (size_t i = 0; i < stream; i += 128) {
    for (int s = 0; s < 4; s++) {
      sums[s] = _mm512_xor_si512(sums[s], _mm512_load_si512(bytes + s * stream + i));
      sums[s] = _mm512_xor_si512(sums[s], _mm512_load_si512(bytes + s * stream + i + 64));
    }
  }
  return uint64_t(_mm512_reduce_add_epi64(_mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]))));
}

__attribute__((target("avx2"))) uint64_t read_256(const char *bytes, size_t count) {
  const size_t stream = count / 4;
  __m256i sums[4] = {};
  for (size_t i = 0; i < stream; i += 64) {
    for (int s = 0; s < 4; s++) {
      const char *at = bytes + s * stream + i;
      sums[s] = _mm256_xor_si256(sums[s], _mm256_load_si256(reinterpret_cast<const __m256i *>(at)));
      sums[s] = _mm256_xor_si256(sums[s], _mm256_load_si256(reinterpret_cast<const __m256i *>(at + 32)));
    }
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  return uint64_t(_mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 3));
}

const char *memory_to_read() {
  static const char *const memory = [] {
    void *made = mmap(nullptr, read_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) {
      perror("ceilings: mmap");
      exit(1);
    }
    madvise(made, read_bytes, MADV_HUGEPAGE);
    memset(made, 1, read_bytes);
    return static_cast<const char *>(made);
  }();
  return memory;
}

double measure_read(int threads) {
  const char *memory = memory_to_read();
  const bool wide = __builtin_cpu_supports("avx512f");
  const size_t share = read_bytes / size_t(threads) / 1024 * 1024;
  const double seconds = run_threads(threads, [&](int i) {
    const char *mine = memory + size_t(i) * share;
    sink += wide ? read_512(mine, share) : read_256(mine, share);
  });
  return double(share) * threads / seconds / 1e9;
}

// The instruction on twelve independent accumulators, so that its latency never shows.
#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

__attribute__((target("avx512f,avx512vnni"))) void vnni_512(long rounds) {
#define X(j) __m512i sum##j = _mm512_set1_epi32(j);
  TWELVE(X)
#undef X
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(2);
  for (long round = 0; round < rounds; round++) {
#define X(j) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum##j) : "v"(a), "v"(b));
    TWELVE(X)
#undef X
  }
#define X(j) sink += uint64_t(_mm512_reduce_add_epi32(sum##j));
  TWELVE(X)
#undef X
}

// What a processor without VNNI does instead: vpmaddubsw, vpmaddwd, vpaddd.
__attribute__((target("avx2"))) void int8_256(long rounds) {
#define X(j) __m256i sum##j = _mm256_set1_epi32(j);
  TWELVE(X)
#undef X
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(2), ones = _mm256_set1_epi16(1);
  for (long round = 0; round < rounds; round++) {
#define X(j)                                                                                                  \
  {                                                                                                           \
    __m256i t;                                                                                                \
    asm volatile("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0" : "+x"(sum##j), "=&x"(t) \
                 : "x"(a), "x"(b), "x"(ones));                                                                \
  }
    TWELVE(X)
#undef X
  }
#define X(j) sink += uint64_t(_mm256_extract_epi32(sum##j, 0));
  TWELVE(X)
#undef X
}

__attribute__((target("avx512f"))) void fma_512(long rounds) {
#define X(j) __m512 sum##j = _mm512_set1_ps(float(j));
  TWELVE(X)
#undef X
  const __m512 a = _mm512_set1_ps(1.0f), b = _mm512_set1_ps(0.5f);
  for (long round = 0; round < rounds; round++) {
#define X(j) asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum##j) : "v"(a), "v"(b));
    TWELVE(X)
#undef X
  }
#define X(j) sink += uint64_t(_mm512_reduce_add_ps(sum##j));
  TWELVE(X)
#undef X
}

__attribute__((target("avx2,fma"))) void fma_256(long rounds) {
#define X(j) __m256 sum##j = _mm256_set1_ps(float(j));
  TWELVE(X)
#undef X
  const __m256 a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(0.5f);
  for (long round = 0; round < rounds; round++) {
#define X(j) asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum##j) : "x"(a), "x"(b));
    TWELVE(X)
#undef X
  }
#define X(j) sink += uint64_t(_mm256_cvtss_f32(sum##j));
  TWELVE(X)
#undef X
}

#if defined(__GNUC__) && (__GNUC__ >= 11 || defined(__clang__))
#define HAVE_AMX 1
struct __attribute__((packed)) tile_config {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

bool has_amx() {
  unsigned a = 7, b = 0, c = 0, d = 0;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr unsigned tile_and_int8 = (1u << 24) | (1u << 25);
  constexpr long request_permission = 0x1023, tile_data = 18;
  return (d & tile_and_int8) == tile_and_int8 && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

__attribute__((target("amx-tile,amx-int8"))) void amx_int8(long rounds) {
  const tile_config config;
  alignas(64) static const char zeros[1024] = {};
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  for (long round = 0; round < rounds; round++) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
}
#endif

// Tera-operations a second of `body`, which does `operations` a round.
double measure_compute(int threads, double operations, const std::function<void(long)> &body) {
  const double seconds = run_threads(threads, [&](int) { body(compute_rounds); });
  return operations * double(compute_rounds) * threads / seconds / 1e12;
}

double measure(const std::string &what, int threads) {
  const bool wide = __builtin_cpu_supports("avx512f");
  if (what == "read") return measure_read(threads);
  if (what == "vnni") {
    if (wide && __builtin_cpu_supports("avx512vnni")) return measure_compute(threads, 12.0 * 2 * 64, vnni_512);
    return measure_compute(threads, 12.0 * 2 * 32, int8_256);
  }
  if (what == "fma") return wide ? measure_compute(threads, 12.0 * 2 * 16, fma_512) : measure_compute(threads, 12.0 * 2 * 8, fma_256);
#ifdef HAVE_AMX
  static const bool amx = has_amx();
  if (what == "amx" && amx) return measure_compute(threads, 4.0 * 2 * 16 * 16 * 64, amx_int8);
#endif
  return 0;
}

}  // namespace

// ceilings THREADS: answers one request a line until its input ends.
int main(int count, char **arguments) {
  const int threads = count > 1 ? atoi(arguments[1]) : 1;
  if (threads < 1 || threads > 256 || !__builtin_cpu_supports("avx2")) {
    fprintf(stderr, "ceilings: expected 1 to 256 threads on a processor with AVX2\n");
    return 2;
  }
  char line[64];
  while (fgets(line, sizeof line, stdin) != nullptr) {
    line[strcspn(line, "\n")] = '\0';
    printf("%.6g\n", measure(line, threads));
    fflush(stdout);
  }
  return 0;
}
