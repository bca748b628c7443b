// Reductions over a block of whole warps, up to 512 threads: every thread gets the result, the same bits on every run, as the
// order depends on the block's size alone. All threads of the block come.
#pragma once
#include "../simt/simt.h"

// warp 0 combines what all warps wrote.
SIMT_DEVICE double block_sum(double value) {
  __shared__ double values[512];
  values[threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    double sum = 0;
    for (unsigned i = threadIdx.x; i < blockDim.x; i += 32) sum += values[i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(full_warp, sum, offset);
    values[threadIdx.x] = sum;
  }
  __syncthreads();
  const double sum = values[0];
  __syncthreads();  // values may be written again
  return sum;
}

SIMT_DEVICE int block_max(int value) {
  __shared__ int values[32];
  value = warp_max(value);
  if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value;
  __syncthreads();
  for (unsigned warp = 0; warp < blockDim.x / 32; warp++) value = max(value, values[warp]);
  __syncthreads();
  return value;
}

// A value and where it was found. Of two, a NaN comes first, then the larger, then the one found earlier.
template <class T>
struct Largest {
  T value;
  int32_t index;
};

template <class T>
SIMT_DEVICE bool comes_first(Largest<T> a, Largest<T> b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && a.value != b.value) return a.value > b.value;
  return a.index < b.index;
}

// The first, by comes_first, of load(0) … load(count - 1), each of which one thread looks at; count is at least 1.
template <class T, class Load>
SIMT_DEVICE Largest<T> block_largest(int64_t count, const Load &load) {
  __shared__ Largest<T> found[32];
  Largest<T> largest = {static_cast<T>(-INFINITY), 0x7fffffff};
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const Largest<T> mine = {load(i), static_cast<int32_t>(i)};
    if (comes_first(mine, largest)) largest = mine;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const Largest<T> other = {__shfl_xor_sync(full_warp, largest.value, offset),
                              __shfl_xor_sync(full_warp, largest.index, offset)};
    if (comes_first(other, largest)) largest = other;
  }
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = largest;
  __syncthreads();
  largest = found[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; warp++) {
    if (comes_first(found[warp], largest)) largest = found[warp];
  }
  __syncthreads();
  return largest;
}
