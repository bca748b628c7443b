// CA · CBᵀ, exact in int32; ms_int8_pad_rows brings a CA that is not made of whole aligned words into that form.
#include "int8_product.h"

namespace {

struct StoreAccumulators {
  const ms_int8_matmul_call &call;

  template <int rows, int columns>
  __device__ __forceinline__ void add_outliers(float (&)[rows][columns], const int64_t (&)[rows], const int64_t (&)[columns],
                                               int, int) const {}
  __device__ __forceinline__ void store(int64_t t, int64_t n, int accumulator, float) const {
    call.out[t * call.out_stride + n] = accumulator;
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(256) ms_int8_matmul_few(ms_int8_matmul_call call) {
  __shared__ Int8FewShared shared;
  int8_few(call.product, StoreAccumulators{call}, shared);
}

extern "C" __global__ void __launch_bounds__(256) ms_int8_matmul_tiles(ms_int8_matmul_call call) {
  __shared__ Int8TileShared shared;
  int8_tiles(call.product, StoreAccumulators{call}, shared);
}

// A block takes one row.
extern "C" __global__ void __launch_bounds__(128) ms_int8_pad_rows(ms_int8_pad_rows_call call) {
  const int8_t *source = call.source + blockIdx.x * call.source_stride;
  for (int64_t word = threadIdx.x; word < call.words; word += blockDim.x) {
    uint32_t bytes = 0;
    for (int i = 0; i < 4; i++) {
      const int64_t k = word * 4 + i;
      if (k < call.K) bytes |= static_cast<uint32_t>(static_cast<uint8_t>(source[k])) << 8 * i;
    }
    call.padded[blockIdx.x * call.words + word] = static_cast<int32_t>(bytes);
  }
}
