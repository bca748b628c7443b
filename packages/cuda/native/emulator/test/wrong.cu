// Kernels that are wrong on purpose; the emulator has to say how. On a GPU all but wrong_address are undefined.
#include "../../simt/simt.h"

#define MS_KERNEL(name, parameters) extern "C" __global__ void name parameters;
#include "kernel_list.def"
#undef MS_KERNEL

extern "C" __global__ void wrong_address(int *out, long long offset) { out[offset + threadIdx.x] = 1; }

extern "C" __global__ void wrong_null(int *out) { *reinterpret_cast<volatile int *>(out) = 1; }

extern "C" __global__ void wrong_trap(int *out) {
  if (threadIdx.x == 3) __trap();
  out[threadIdx.x] = 1;
}

extern "C" __global__ void wrong_division(int *out, int divisor) { out[threadIdx.x] = 1000 / divisor; }

extern "C" __global__ void wrong_stack(int *out, int at) {
  volatile int large[20000];
  large[at] = at;
  out[0] = large[at];
}

extern "C" __global__ void wrong_two_barriers(int *out) {
  if (threadIdx.x < 32) {
    out[threadIdx.x] = 1;
    __syncthreads();
  } else {
    out[threadIdx.x] = 2;
    __syncthreads();
  }
}

extern "C" __global__ void wrong_missed_barrier(int *out) {
  if (threadIdx.x != 7) __syncthreads();
  out[threadIdx.x] = 1;
}

extern "C" __global__ void wrong_exit_first(int *out) {
  if (threadIdx.x < 32) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

extern "C" __global__ void wrong_mask(int *out) {
  out[threadIdx.x] = __shfl_sync(0xffffu, static_cast<int>(threadIdx.x), 0);
}

extern "C" __global__ void wrong_absent_lane(int *out) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 16) out[lane] = __shfl_sync(0xffffu, lane, lane + 16);
}

extern "C" __global__ void wrong_exited_lane(int *out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_xor_sync(full_warp, static_cast<int>(threadIdx.x), 1);
}

// Half of the warp waits for a shuffle, the other half for a barrier.
extern "C" __global__ void wrong_half_meeting(int *out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(full_warp, static_cast<int>(threadIdx.x), 1);
  } else {
    __syncthreads();
  }
}

extern "C" __global__ void wrong_dynamic_shared(int *out, int bytes) {
  SIMT_DYNAMIC_SHARED(smem);
  smem[bytes + static_cast<int>(threadIdx.x)] = 1;
  __syncthreads();
  out[threadIdx.x] = smem[bytes];
}

extern "C" __global__ void wrong_misaligned_copy(const int4 *x, int *out) {
  __shared__ int4 buffer[2];
  cp_async16(buffer, reinterpret_cast<const char *>(x) + 4);
  out[0] = buffer[0].x;
}

extern "C" __global__ void wrong_copy_target(const int4 *x, int *out) {
  cp_async16(out, x);
  cp_async_wait<0>();
}

// Not an error of its own, but wrong: the copy has not come when the buffer is read.
extern "C" __global__ void wrong_forgotten_wait(const int4 *x, int4 *out) {
  __shared__ int4 buffer[32];
  cp_async16(&buffer[threadIdx.x], x + threadIdx.x);
  cp_async_commit();
  out[threadIdx.x] = buffer[threadIdx.x];
}
