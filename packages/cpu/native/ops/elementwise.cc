// See elementwise.h.
#include "ops/elementwise.h"

#include <string.h>

element_walk::element_walk(std::initializer_list<const operand *> operands) {
  const operand &first = **operands.begin();
  for (const operand *each : operands) data_[count_++] = each->data;
  // From the innermost dimension outwards: merge a dimension into the one inside where all operands step over the latter
  // exactly.
  int64_t shape[MS_MAX_RANK], stride[most_operands][MS_MAX_RANK];  // innermost first
  for (int d = first.rank - 1; d >= 0; d--) {
    elements_ *= first.shape[d];
    if (first.shape[d] == 1) continue;
    bool merges = rank_ > 0;
    int k = 0;
    for (const operand *each : operands) {
      stride[k][rank_] = each->stride[d] * dtype_bytes(each->dtype);
      merges = merges && stride[k][rank_] == stride[k][rank_ - 1] * shape[rank_ - 1];
      k++;
    }
    if (merges) {
      shape[rank_ - 1] *= first.shape[d];
    } else {
      shape[rank_++] = first.shape[d];
    }
  }
  if (rank_ == 0) {  // one element
    shape[0] = 1;
    for (int k = 0; k < count_; k++) stride[k][0] = dtype_bytes(operands.begin()[k]->dtype);
    rank_ = 1;
  }
  for (int d = 0; d < rank_; d++) {
    shape_[rank_ - 1 - d] = shape[d];
    for (int k = 0; k < count_; k++) stride_bytes_[k][rank_ - 1 - d] = stride[k][d];
  }
  inner_ = shape_[rank_ - 1];
  for (int d = 0; d < rank_ - 1; d++) outer_ *= shape_[d];
}

element_run element_walk::piece(int64_t row, int64_t part) const {
  element_run run;
  const int64_t start = part * longest_run;
  for (int k = 0; k < count_; k++) {
    run.stride_bytes[k] = stride_bytes_[k][rank_ - 1];
    run.data[k] = data_[k] + start * run.stride_bytes[k];
  }
  for (int d = rank_ - 2; d >= 0; d--) {
    const int64_t index = row % shape_[d];
    row /= shape_[d];
    for (int k = 0; k < count_; k++) run.data[k] += index * stride_bytes_[k][d];
  }
  run.count = inner_ - start < longest_run ? inner_ - start : longest_run;
  return run;
}

namespace {

template <typename Element>
void copy_strided(char *to, int64_t to_stride, const char *from, int64_t from_stride, int64_t count) {
  for (int64_t i = 0; i < count; i++) memcpy(to + i * to_stride, from + i * from_stride, sizeof(Element));
}

void copy_elements(char *to, int64_t to_stride, const char *from, int64_t from_stride, int64_t count, int64_t bytes) {
  if (to_stride == bytes && from_stride == bytes) {
    memcpy(to, from, size_t(count * bytes));
  } else if (bytes == 1) {
    copy_strided<uint8_t>(to, to_stride, from, from_stride, count);
  } else if (bytes == 2) {
    copy_strided<uint16_t>(to, to_stride, from, from_stride, count);
  } else if (bytes == 4) {
    copy_strided<uint32_t>(to, to_stride, from, from_stride, count);
  } else {
    copy_strided<uint64_t>(to, to_stride, from, from_stride, count);
  }
}

}  // namespace

void gather(char *to, const char *from, int64_t stride_bytes, int64_t count, int64_t bytes) {
  copy_elements(to, bytes, from, stride_bytes, count, bytes);
}

void scatter(char *to, int64_t stride_bytes, const char *from, int64_t count, int64_t bytes) {
  copy_elements(to, stride_bytes, from, bytes, count, bytes);
}

void run_binary(const op_arguments &arguments, void (*function)(float *out, const float *a, const float *b, int64_t n)) {
  const operand a = arguments.input(0, "a", f32_only), b = arguments.input(1, "b", f32_only);
  const operand out = arguments.output(0, "out", f32_only);
  arguments.same_shape(b, "b", a);
  arguments.same_shape(out, "out", a);
  element_walk({&out, &a, &b}).run([&](const element_run &run) {
    float *buffers[most_operands];
    for (int k = 0; k < most_operands; k++) {
      const bool contiguous = run.stride_bytes[k] == sizeof(float);
      buffers[k] =
          contiguous ? reinterpret_cast<float *>(run.data[k]) : static_cast<float *>(thread_workspace()) + k * longest_run;
      if (!contiguous && k > 0) gather(reinterpret_cast<char *>(buffers[k]), run.data[k], run.stride_bytes[k], run.count, 4);
    }
    function(buffers[0], buffers[1], buffers[2], run.count);
    if (run.stride_bytes[0] != sizeof(float)) {
      scatter(run.data[0], run.stride_bytes[0], reinterpret_cast<char *>(buffers[0]), run.count, 4);
    }
  });
}
