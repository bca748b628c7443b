// Kernels that use every feature of simt.h the way kernels should; the same file builds with nvcc.
#include "../../simt/simt.h"

#define MS_KERNEL(name, parameters) extern "C" __global__ void name parameters;
#include "kernel_list.def"
#undef MS_KERNEL

extern "C" __global__ void example_fill(unsigned *out, unsigned value, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) out[i] = value;
}

extern "C" __global__ void example_add(const unsigned *a, const unsigned *b, unsigned *out, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) out[i] = __ldg(a + i) + __ldg(b + i);
}

// Softmax of a row a block, in float32; the same rounded to bfloat16; and a histogram of the arguments' signs over all rows.
// Dynamic shared memory: the row, 4 · columns bytes.
extern "C" __global__ void __launch_bounds__(128) example_softmax(const ms_half *x, float *out, ms_bfloat16 *narrow,
                                                                  unsigned *histogram, int columns) {
  SIMT_DYNAMIC_SHARED(smem);
  __shared__ float partial[4];
  float *row = reinterpret_cast<float *>(smem);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const size_t first = static_cast<size_t>(blockIdx.x) * columns;

  float largest = -INFINITY;
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += static_cast<int>(blockDim.x)) {
    row[i] = to_float(x[first + i]);
    largest = fmaxf(largest, row[i]);
    atomicAdd(histogram + (row[i] < 0 ? 0 : 1), 1u);
  }
  largest = warp_max(largest);
  if (lane == 0) partial[warp] = largest;
  __syncthreads();
  largest = fmaxf(fmaxf(partial[0], partial[1]), fmaxf(partial[2], partial[3]));
  __syncthreads();

  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += static_cast<int>(blockDim.x)) {
    row[i] = expf(row[i] - largest);
    sum += row[i];
  }
  sum = warp_sum(sum);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  sum = ms_add(ms_add(partial[0], partial[1]), ms_add(partial[2], partial[3]));
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += static_cast<int>(blockDim.x)) {
    out[first + i] = ms_div(row[i], sum);
    narrow[first + i] = from_float<ms_bfloat16>(out[first + i]);
  }
}

// out = a · bᵀ of int8 [rows, depth] and [columns, depth]: a tile of 16 × 8 a warp, on tensor cores, with a double buffer
// filled asynchronously. depth: a multiple of 32; rows of 16, columns of 8.
extern "C" __global__ void __launch_bounds__(32) example_product(const signed char *a, const signed char *b, int *out, int rows,
                                                                 int columns, int depth) {
  __shared__ __align__(16) signed char tile_a[2][16][32];
  __shared__ __align__(16) signed char tile_b[2][8][32];
  const int lane = static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(blockIdx.y) * 16, column = static_cast<int>(blockIdx.x) * 8;
  int d[4] = {};
  const auto load = [&](int step) {
    const int half = lane % 2 * 16, k = step * 32 + half;
    cp_async16(&tile_a[step % 2][lane / 2][half], a + static_cast<size_t>(row + lane / 2) * depth + k);
    if (lane < 16) cp_async16(&tile_b[step % 2][lane / 2][half], b + static_cast<size_t>(column + lane / 2) * depth + k);
    cp_async_commit();
  };
  load(0);
  for (int step = 0; step < depth / 32; step++) {
    if (step + 1 < depth / 32) {
      load(step + 1);
    } else {
      cp_async_commit();
    }
    cp_async_wait<1>();
    __syncwarp();
    unsigned fragment_a[4], fragment_b[2];
    ldmatrix_x4(fragment_a, &tile_a[step % 2][lane % 16][lane / 16 * 16]);
    const signed char *from = &tile_b[step % 2][lane / 4][lane % 4 * 4];
    fragment_b[0] = *reinterpret_cast<const unsigned *>(from);
    fragment_b[1] = *reinterpret_cast<const unsigned *>(from + 16);
    mma_s8(d, fragment_a, fragment_b);
    __syncwarp();  // before the tile is written again
  }
  for (int r = 0; r < 4; r++) {
    out[static_cast<size_t>(row + lane / 4 + r / 2 * 8) * columns + column + lane % 4 * 2 + r % 2] = d[r];
  }
  (void)rows;
}

// Per thread: ballot, match, count over the block, sum of four bytes' products.
extern "C" __global__ void example_votes(const int *x, unsigned *out) {
  const int mine = x[threadIdx.x];
  unsigned *to = out + threadIdx.x * 6;
  to[0] = __ballot_sync(full_warp, mine > 0);
  to[1] = __match_any_sync(full_warp, mine);
  to[2] = static_cast<unsigned>(__syncthreads_count(mine > 0));
  to[3] = static_cast<unsigned>(__syncthreads_or(mine == 7)) != 0 ? 1 : 0;
  to[4] = static_cast<unsigned>(__dp4a(mine, 0x01ff02fe, 5));
  to[5] = static_cast<unsigned>(warp_sum(mine)) + static_cast<unsigned>(__all_sync(full_warp, mine > -1000) != 0);
}

// Shuffles of every kind, within groups of 8 lanes.
extern "C" __global__ void example_rotate(const float *x, float *out, int shift) {
  const float mine = x[threadIdx.x];
  float *to = out + threadIdx.x * 4;
  to[0] = __shfl_sync(full_warp, mine, static_cast<int>(threadIdx.x) + shift, 8);
  to[1] = __shfl_up_sync(full_warp, mine, shift, 8);
  to[2] = __shfl_down_sync(full_warp, mine, shift, 8);
  to[3] = __shfl_xor_sync(full_warp, mine, shift, 8);
}

// Each thread sends chunks of 16 bytes through shared memory, two copies in flight.
extern "C" __global__ void example_copy_through_shared(const int4 *x, int4 *out, int chunks) {
  __shared__ int4 buffer[2][64];
  const size_t mine = static_cast<size_t>(threadIdx.x) * chunks;
  cp_async16(&buffer[0][threadIdx.x], x + mine);
  cp_async_commit();
  for (int i = 0; i < chunks; i++) {
    if (i + 1 < chunks) cp_async16(&buffer[(i + 1) % 2][threadIdx.x], x + mine + i + 1);
    cp_async_commit();
    cp_async_wait<1>();
    out[mine + i] = buffer[i % 2][threadIdx.x];
  }
}
