// LLM.int8() row quantization of activations with its outlier columns (Dettmers et al. 2022, arXiv 2208.07339, section 3), in
// up to three launches: every row by itself; the columns that any row marked, listed; these columns set to zero in all rows.
#include "calls.h"
#include "float_types.h"
#include "int8_rounding.h"
#include "reduce.h"

namespace {

SIMT_DEVICE bool is_outlier(float x, float threshold) { return threshold > 0.0f && !(fabsf(x) < threshold); }

}  // namespace

// A block takes one row: its absmax over what is no outlier, then its bytes. A warp looks at 32 columns, one word of the flags.
extern "C" __global__ void __launch_bounds__(256) ms_int8_quantize_rows(ms_int8_quantize_call call) {
  const float *x = call.x + blockIdx.x * call.x_stride;
  int8_t *CA = call.CA + blockIdx.x * call.CA_stride;
  int largest = 0;
  for (int64_t first = 0; first < call.K; first += blockDim.x) {
    const int64_t k = first + threadIdx.x;
    const bool outlier = k < call.K && is_outlier(x[k], call.threshold);
    if (k < call.K && !outlier) largest = max(largest, magnitude_bits(x[k]));
    const unsigned marks = __ballot_sync(full_warp, outlier);
    if (marks != 0 && threadIdx.x % 32 == 0) atomicOr(&call.flags[k / 32], marks);
  }
  const float absmax = __int_as_float(block_max(largest)), scale = ms_div(127.0f, absmax);
  for (int64_t k = threadIdx.x; k < call.K; k += blockDim.x) {
    CA[k] = is_outlier(x[k], call.threshold) ? int8_t{0} : quantized(x[k], absmax, scale);
  }
  if (threadIdx.x != 0) return;
  call.SCA[blockIdx.x] = absmax;
  if (blockIdx.x == 0 && !(call.threshold > 0.0f)) call.outlier_cols[0] = 0;
}

// One block: flags → outlier_cols = [count, ascending columns…], 256 words at a time.
extern "C" __global__ void __launch_bounds__(256) ms_int8_quantize_list_columns(ms_int8_quantize_call call) {
  __shared__ int warp_counts[8];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t words = (call.K + 31) / 32;
  int listed = 0;
  for (int64_t first = 0; first < words; first += blockDim.x) {
    const int64_t index = first + threadIdx.x;
    unsigned word = index < words ? call.flags[index] : 0;
    int upto = __popc(word);  // in this warp's words up to this one
    for (int offset = 1; offset < 32; offset *= 2) {
      const int before = __shfl_up_sync(full_warp, upto, offset);
      if (lane >= offset) upto += before;
    }
    if (lane == 31) warp_counts[warp] = upto;
    __syncthreads();
    int place = listed + upto - __popc(word);
    for (int other = 0; other < 8; other++) {
      if (other < warp) place += warp_counts[other];
      listed += warp_counts[other];
    }
    for (; word != 0; word &= word - 1) {
      call.outlier_cols[++place] = static_cast<int32_t>(index * 32 + __ffs(static_cast<int>(word)) - 1);
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) call.outlier_cols[0] = listed;
}

// A block takes one row.
extern "C" __global__ void __launch_bounds__(128) ms_int8_quantize_zero_columns(ms_int8_quantize_call call) {
  int8_t *CA = call.CA + blockIdx.x * call.CA_stride;
  const int32_t count = call.outlier_cols[0];
  for (int32_t i = threadIdx.x; i < count; i += blockDim.x) CA[call.outlier_cols[1 + i]] = 0;
}
