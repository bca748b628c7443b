// The one header that kernels (../kernels/*.cu) include. nvcc sees thin wrappers over CUDA and PTX (simt_gpu.h); the host
// compiler sees the emulator (simt_host.h), so that the same file runs on a machine without a GPU. No toolkit header is needed
// by the second. Kernels are plain CUDA; the end of this comment shows one.
//
// Allowed, the same on both sides:
//   extern "C" __global__, __device__, __forceinline__, __launch_bounds__, __restrict__, templates, #pragma unroll
//   threadIdx, blockIdx, blockDim, gridDim; one-dimensional blocks of whole warps wherever a warp operation is used
//   __shared__ T name[N] of trivial types in functions; dynamic shared memory: SIMT_DYNAMIC_SHARED(smem); (always that name)
//   __syncthreads(), __syncthreads_or/_and/_count(predicate)
//   __syncwarp(mask), __shfl_sync, __shfl_xor_sync, __shfl_up_sync, __shfl_down_sync (values of up to 8 bytes), __ballot_sync,
//   __any_sync, __all_sync, __match_any_sync(int); every lane that the mask names has to come; warp_sum, warp_max (below)
//   atomicAdd/Max/Min/Or/And/Exch/CAS on 32 and 64 bit integers; atomicAdd on float only where the order cannot matter
//   __dp4a, __popc, __clz, __ffs, __ldg, min, max, __float2int_rn, __int2float_rn, __float_as_int and its kin
//   vector loads and stores through reinterpret_cast to int2, int4, uint2, uint4, float2, float4, aligned to their size
//   float maths: + - * /, sqrtf, rsqrtf, expf, __expf, logf, __logf, tanhf, erff, powf, sinf, cosf, fabsf, fminf, fmaxf, rintf
//   ms_half, ms_bfloat16 (simt_half.h): bits; to_float(x) and from_float<T>(f) convert exactly, rounding to nearest even
//   ms_mul, ms_add, ms_fma, ms_div, ms_sqrt: one IEEE operation each, never contracted, where bits must agree with the CPU's
//   cp_async16, cp_async_commit, cp_async_wait<N>; ldmatrix_x4, ldmatrix_x4_transposed; mma_s8, mma_f16, mma_bf16
//   a device pointer argument is null or points into (or one past the end of) an allocation of the launching device
// Not allowed (not emulated, or fragile on a GPU): __activemask and code that counts on lanes running together; blocks that
//   wait for one another; __device__ and __constant__ variables (use static constexpr); inline asm and SIMT_ARCH outside this
//   folder; textures; device malloc, printf, assert; <<<>>>; stream 0; threads that return while others of their block still
//   meet a barrier, or lanes that return while others of their warp still name them in a mask; integer division by zero;
//   local arrays beyond some 48 KiB a thread.
//
// Every kernel is named once in kernels/kernel_list.def, `MS_KERNEL(name, (parameters))`, which the emulator's kernel library
// registers and the plugin's typed launches are made from. Parameters are pointers, numbers or trivially copyable structs.
//
//   extern "C" __global__ void __launch_bounds__(256) scale_rows(const float *x, const float *factor, float *y, int columns) {
//     const float f = factor[blockIdx.x];
//     for (int i = threadIdx.x; i < columns; i += blockDim.x) {
//       const size_t at = static_cast<size_t>(blockIdx.x) * columns + i;
//       y[at] = ms_mul(x[at], f);
//     }
//   }
//
// A longer one, with shared memory, shuffles and atomics, is ../emulator/test/example.cu.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#include "simt_gpu.h"
#else
#include "simt_host.h"
#endif

static constexpr unsigned full_warp = 0xffffffffu;
