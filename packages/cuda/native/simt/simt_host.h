// The host side of simt.h: CUDA's words for a C++ compiler. A thread of a block is a fiber; what the threads of a block do
// together is a call into the emulator's runtime (../emulator/runtime), declared below in namespace simt. Included by kernels
// only. Not here: anything about launches, devices or the driver.
#pragma once
#include <math.h>

#include <type_traits>

#include "simt_half.h"

#define SIMT_ARCH 900
#define SIMT_DEVICE static inline
#define SIMT_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

#define __global__
#define __device__
#define __host__
#define __shared__ thread_local  // at block scope static; a host thread runs one block at a time, so its copy is the block's
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// ---- vectors
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
#define SIMT_VECTORS(T, V2, V4, alignment4)                  \
  struct alignas(2 * sizeof(T)) V2 {                         \
    T x, y;                                                  \
  };                                                         \
  struct alignas(alignment4) V4 {                            \
    T x, y, z, w;                                            \
  };                                                         \
  inline V2 make_##V2(T x, T y) { return {x, y}; }           \
  inline V4 make_##V4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTORS(signed char, char2, char4, 4)
SIMT_VECTORS(unsigned char, uchar2, uchar4, 4)
SIMT_VECTORS(short, short2, short4, 8)
SIMT_VECTORS(unsigned short, ushort2, ushort4, 8)
SIMT_VECTORS(int, int2, int4, 16)
SIMT_VECTORS(unsigned, uint2, uint4, 16)
SIMT_VECTORS(float, float2, float4, 16)
#undef SIMT_VECTORS

// ---- the runtime
#pragma GCC visibility push(default)
namespace simt {

#define SIMT_CONSTANT __attribute__((const))  // the same whenever one thread asks, so the compiler may keep it
uint3 thread_index() SIMT_CONSTANT;
uint3 block_index() SIMT_CONSTANT;
uint3 block_dim() SIMT_CONSTANT;
uint3 grid_dim() SIMT_CONSTANT;
int lane() SIMT_CONSTANT;
#undef SIMT_CONSTANT

// What __syncthreads and its kin return; threads of one barrier must come with one kind, from one line.
enum class BarrierKind { sync, any, all, count };
int barrier(BarrierKind kind, int predicate, const char *file, int line);

// The lanes of `mask` meet; the last to come runs `operation` on the arguments of all (null for lanes outside the mask).
using WarpOperation = void (*)(void **arguments, unsigned mask);
void meet(unsigned mask, WarpOperation operation, void *argument, const char *file, int line);

struct Shuffle {
  uint64_t value, result;
  int source;
};
struct Vote {
  int predicate;
  unsigned ballot;
};
struct Match {
  int value;
  unsigned lanes;
};
struct MatrixProduct {
  void *d;
  const unsigned *a, *b;
};
struct MatrixLoad {
  unsigned *registers;
  const void *row;
};
void shuffle(void **, unsigned);
void ballot(void **, unsigned);
void match_any(void **, unsigned);
void synchronize(void **, unsigned);
void warp_sum_float(void **, unsigned);  // arguments: float *, replaced by the butterfly sum; and so on
void warp_sum_double(void **, unsigned);
void warp_sum_int(void **, unsigned);
void warp_max_float(void **, unsigned);
void warp_max_int(void **, unsigned);
void matrix_product_s8(void **, unsigned);
void matrix_product_f16(void **, unsigned);
void matrix_product_bf16(void **, unsigned);
void matrix_load(void **, unsigned);
void matrix_load_transposed(void **, unsigned);

void copy_async(void *shared, const void *global, int bytes, const char *file, int line);
void copy_async_commit();
void copy_async_wait(int groups_left);

[[noreturn]] void trap(const char *what);

}  // namespace simt
#pragma GCC visibility pop

// ---- indices, barriers, warp operations
#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_dim())
#define gridDim (simt::grid_dim())
#define warpSize 32

#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(SIMT_SITE) { simt::barrier(simt::BarrierKind::sync, 0, file, line); }
inline int __syncthreads_or(int p, SIMT_SITE) { return simt::barrier(simt::BarrierKind::any, p, file, line); }
inline int __syncthreads_and(int p, SIMT_SITE) { return simt::barrier(simt::BarrierKind::all, p, file, line); }
inline int __syncthreads_count(int p, SIMT_SITE) { return simt::barrier(simt::BarrierKind::count, p, file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE) {
  int nothing = 0;
  simt::meet(mask, simt::synchronize, &nothing, file, line);
}

namespace simt {

template <class T>
inline T shuffle_from(unsigned mask, T value, int source, const char *file, int line) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  Shuffle argument{0, 0, source};
  memcpy(&argument.value, &value, sizeof value);
  meet(mask, shuffle, &argument, file, line);
  memcpy(&value, &argument.result, sizeof value);
  return value;
}

// A shuffle within groups of `width` lanes keeps its own value where the source lies outside the group.
inline int lane_within(int source, int width) {
  const int group = lane() & ~(width - 1);
  return source >= group && source < group + width ? source : lane();
}

}  // namespace simt

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_SITE) {
  return simt::shuffle_from(mask, value, (simt::lane() & ~(width - 1)) | (source & (width - 1)), file, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_SITE) {
  return simt::shuffle_from(mask, value, simt::lane_within(simt::lane() ^ lanes, width), file, line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, SIMT_SITE) {
  return simt::shuffle_from(mask, value, simt::lane_within(simt::lane() + static_cast<int>(lanes), width), file, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, SIMT_SITE) {
  return simt::shuffle_from(mask, value, simt::lane_within(simt::lane() - static_cast<int>(lanes), width), file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  simt::Vote vote{predicate, 0};
  simt::meet(mask, simt::ballot, &vote, file, line);
  return vote.ballot;
}
inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) { return __ballot_sync(mask, predicate, file, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) { return __ballot_sync(mask, !predicate, file, line) == 0; }
inline unsigned __match_any_sync(unsigned mask, int value, SIMT_SITE) {
  simt::Match match{value, 0};
  simt::meet(mask, simt::match_any, &match, file, line);
  return match.lanes;
}

// One meeting where the GPU makes five shuffles; the sums are added in the butterfly's order, so the bits are the same.
inline float warp_sum(float value, SIMT_SITE) {
  simt::meet(0xffffffffu, simt::warp_sum_float, &value, file, line);
  return value;
}
inline double warp_sum(double value, SIMT_SITE) {
  simt::meet(0xffffffffu, simt::warp_sum_double, &value, file, line);
  return value;
}
inline int warp_sum(int value, SIMT_SITE) {
  simt::meet(0xffffffffu, simt::warp_sum_int, &value, file, line);
  return value;
}
inline float warp_max(float value, SIMT_SITE) {
  simt::meet(0xffffffffu, simt::warp_max_float, &value, file, line);
  return value;
}
inline int warp_max(int value, SIMT_SITE) {
  simt::meet(0xffffffffu, simt::warp_max_int, &value, file, line);
  return value;
}

inline void cp_async16(void *shared, const void *global, int bytes = 16, SIMT_SITE) {
  simt::copy_async(shared, global, bytes, file, line);
}
inline void cp_async_commit() { simt::copy_async_commit(); }
template <int N>
inline void cp_async_wait() {
  simt::copy_async_wait(N);
}
inline void ldmatrix_x4(unsigned (&r)[4], const void *row, SIMT_SITE) {
  simt::MatrixLoad load{r, row};
  simt::meet(0xffffffffu, simt::matrix_load, &load, file, line);
}
inline void ldmatrix_x4_transposed(unsigned (&r)[4], const void *row, SIMT_SITE) {
  simt::MatrixLoad load{r, row};
  simt::meet(0xffffffffu, simt::matrix_load_transposed, &load, file, line);
}
inline void mma_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], SIMT_SITE) {
  simt::MatrixProduct product{d, a, b};
  simt::meet(0xffffffffu, simt::matrix_product_s8, &product, file, line);
}
inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], SIMT_SITE) {
  simt::MatrixProduct product{d, a, b};
  simt::meet(0xffffffffu, simt::matrix_product_f16, &product, file, line);
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], SIMT_SITE) {
  simt::MatrixProduct product{d, a, b};
  simt::meet(0xffffffffu, simt::matrix_product_bf16, &product, file, line);
}
#undef SIMT_SITE

[[noreturn]] inline void __trap() { simt::trap("__trap()"); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

// ---- atomics, relaxed as CUDA's
template <class T>
inline T atomicAdd(T *address, std::type_identity_t<T> value) {
  if constexpr (std::is_integral_v<T>) return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
  T old;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  for (;;) {
    T sum = old + value;
    if (__atomic_compare_exchange(address, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return old;
  }
}
template <class T>
inline T atomicMax(T *address, std::type_identity_t<T> value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
inline T atomicMin(T *address, std::type_identity_t<T> value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
inline T atomicOr(T *address, std::type_identity_t<T> value) {
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
template <class T>
inline T atomicAnd(T *address, std::type_identity_t<T> value) {
  return __atomic_fetch_and(address, value, __ATOMIC_RELAXED);
}
template <class T>
inline T atomicExch(T *address, std::type_identity_t<T> value) {
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
template <class T>
inline T atomicCAS(T *address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

// ---- numbers
inline int __dp4a(int a, int b, int c) {
  for (int shift = 0; shift < 32; shift += 8) c += static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift);
  return c;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __ffs(int value) { return __builtin_ffs(value); }
template <class T>
inline T __ldg(const T *pointer) {
  return *pointer;
}
#define SIMT_MIN_MAX(T)                               \
  inline T min(T a, T b) { return b < a ? b : a; }    \
  inline T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

inline unsigned __float_as_uint(float value) { return ms_bits_of(value); }
inline int __float_as_int(float value) { return static_cast<int>(ms_bits_of(value)); }
inline float __uint_as_float(unsigned bits) { return ms_float_of(bits); }
inline float __int_as_float(int bits) { return ms_float_of(static_cast<unsigned>(bits)); }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
// Rounds to nearest even and saturates; a NaN becomes 0 (PTX ISA, cvt).
inline int __float2int_rn(float value) {
  if (value != value) return 0;
  if (value >= 2147483648.0f) return 0x7fffffff;
  if (value < -2147483648.0f) return -0x7fffffff - 1;
  return static_cast<int>(rintf(value));
}

inline float ms_mul(float a, float b) { return a * b; }
inline float ms_add(float a, float b) { return a + b; }
inline float ms_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float ms_div(float a, float b) { return a / b; }
inline float ms_sqrt(float a) { return __builtin_sqrtf(a); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
