// For ops that treat every element alike: a block takes `elements_per_block` elements in row-major order, its threads side by
// side.
#pragma once
#include "../simt/simt.h"
#include "calls.h"

static constexpr int elements_per_thread = 4;

// How often `size` goes into `index`; in 32 bits where that holds it, which a GPU divides much faster.
SIMT_DEVICE int64_t whole_times(int64_t index, int64_t size) {
  if (((index | size) >> 32) == 0) return static_cast<uint32_t>(index) / static_cast<uint32_t>(size);
  return index / size;
}

// Where element `index` lies in each operand.
template <int operands>
SIMT_DEVICE void locate(const ms_elements &elements, int64_t index, int64_t (&at)[operands]) {
  for (int k = 0; k < operands; k++) at[k] = 0;
  for (int d = 0; d < elements.rank; d++) {
    const int64_t outer = d + 1 == elements.rank ? 0 : whole_times(index, elements.shape[d]);
    const int64_t inner = index - outer * elements.shape[d];
    for (int k = 0; k < operands; k++) at[k] += inner * elements.stride[k][d];
    index = outer;
  }
}

// body(at) for each element of this thread, at[k] being its place in operand k.
template <int operands, class Body>
SIMT_DEVICE void each_element(const ms_elements &elements, const Body &body) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x * elements_per_thread + threadIdx.x;
#pragma unroll 1
  for (int i = 0; i < elements_per_thread; i++) {
    const int64_t index = first + static_cast<int64_t>(i) * blockDim.x;
    if (index >= elements.count) return;
    int64_t at[operands];
    locate(elements, index, at);
    body(at);
  }
}
