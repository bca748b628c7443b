// The nvcc side of simt.h: what CUDA lacks or spells in PTX. The only place with inline assembly (besides simt_half.h's
// conversions) and with branches on the architecture. Instructions: PTX ISA, "Warp Level Matrix Multiply-Accumulate
// Instructions" and "Data Movement: cp.async, ldmatrix".
#pragma once
#include "simt_half.h"

#ifdef __CUDA_ARCH__
#define SIMT_ARCH __CUDA_ARCH__
#else
#define SIMT_ARCH 0
#endif
#define SIMT_DEVICE static __device__ __forceinline__
#define SIMT_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// ---- one IEEE operation each, never contracted
SIMT_DEVICE float ms_mul(float a, float b) { return __fmul_rn(a, b); }
SIMT_DEVICE float ms_add(float a, float b) { return __fadd_rn(a, b); }
SIMT_DEVICE float ms_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
SIMT_DEVICE float ms_div(float a, float b) { return __fdiv_rn(a, b); }
SIMT_DEVICE float ms_sqrt(float a) { return __fsqrt_rn(a); }

// ---- reductions over a full warp, by butterfly: every lane gets the result, the same bits on every lane and in the emulator
// (warp_sum: float, double, int; warp_max: float, int)
template <class T>
SIMT_DEVICE T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
SIMT_DEVICE float warp_max(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}
SIMT_DEVICE int warp_max(int value) {
  for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

SIMT_DEVICE unsigned shared_address(const void *pointer) { return static_cast<unsigned>(__cvta_generic_to_shared(pointer)); }

// ---- asynchronous copies of 16 bytes, global to shared; of the last `16 - bytes` nothing is read and zeros are written
#if SIMT_ARCH >= 800
SIMT_DEVICE void cp_async16(void *shared, const void *global, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
SIMT_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
SIMT_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#else  // sm_75 has none: the copy is made at once, through registers
SIMT_DEVICE void cp_async16(void *shared, const void *global, int bytes = 16) {
  int4 value = make_int4(0, 0, 0, 0);
  if (bytes == 16) {
    value = *static_cast<const int4 *>(global);
  } else {
    for (int i = 0; i < bytes; i++) reinterpret_cast<char *>(&value)[i] = static_cast<const char *>(global)[i];
  }
  *static_cast<int4 *>(shared) = value;
}
SIMT_DEVICE void cp_async_commit() {}
template <int N>
SIMT_DEVICE void cp_async_wait() {}
#endif

// ---- four 8 × 8 matrices of 16-bit elements from shared memory: lane l passes the address of row l % 8 of matrix l / 8 and
// gets, in register i, elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i (transposed: of its transpose)
SIMT_DEVICE void ldmatrix_x4(unsigned (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
SIMT_DEVICE void ldmatrix_x4_transposed(unsigned (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- d += a · b on tensor cores, by a whole warp; the fragments' layouts are written at the emulator's twins (matrix.cpp)
// int8: a is 16 × 32, b 32 × 8, d int32 16 × 8.
SIMT_DEVICE void mma_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if SIMT_ARCH >= 800
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // sm_75: four m8n8k16 over the same registers
#define SIMT_M8N8K16(c0, c1, A, B)                                                                     \
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1},{%2},{%3},{%0,%1};" : "+r"(c0), "+r"(c1) \
               : "r"(A), "r"(B))
  SIMT_M8N8K16(d[0], d[1], a[0], b[0]);
  SIMT_M8N8K16(d[2], d[3], a[1], b[0]);
  SIMT_M8N8K16(d[0], d[1], a[2], b[1]);
  SIMT_M8N8K16(d[2], d[3], a[3], b[1]);
#undef SIMT_M8N8K16
#endif
}

// float16: a is 16 × 16, b 16 × 8, d float32 16 × 8.
SIMT_DEVICE void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if SIMT_ARCH >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // sm_75: two m16n8k8 over the same registers
#define SIMT_M16N8K8(A0, A1, B)                                                                                         \
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"             \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(A0), "r"(A1), "r"(B))
  SIMT_M16N8K8(a[0], a[1], b[0]);
  SIMT_M16N8K8(a[2], a[3], b[1]);
#undef SIMT_M16N8K8
#endif
}

// bfloat16, shaped as mma_f16. There is none before sm_80: the host must not launch a kernel that uses it there.
SIMT_DEVICE void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if SIMT_ARCH >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}
