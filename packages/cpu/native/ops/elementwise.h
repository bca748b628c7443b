// Walks strided tensors of one shape together: dimensions that are contiguous in all of them become one, long runs are cut into
// tasks. For ops that treat every element alike (add, mul, activation, cast, copy).
#pragma once
#include "ops/op.h"

constexpr int most_operands = 3;
constexpr int64_t longest_run = 16384;  // elements; three float32 buffers of it fit the workspace

// A piece of the innermost dimension: first element and stride in bytes per operand.
struct element_run {
  char *data[most_operands];
  int64_t stride_bytes[most_operands];
  int64_t count;
};

class element_walk {
 public:
  // All of the same shape, which the caller has checked. operands[0] is the output.
  element_walk(std::initializer_list<const operand *> operands);

  // body(const element_run &) for all elements, in parallel.
  template <typename Body>
  void run(const Body &body) const {
    if (elements_ == 0) return;
    const int64_t pieces = (inner_ + longest_run - 1) / longest_run;
    parallel_rows(outer_ * pieces, inner_ < longest_run ? inner_ : longest_run, [&](int64_t first, int64_t end) {
      for (int64_t index = first; index < end; index++) body(piece(index / pieces, index % pieces));
    });
  }

 private:
  element_run piece(int64_t row, int64_t part) const;

  int count_ = 0;
  int rank_ = 0;  // after merging; dimension rank_ - 1 is the inner one
  int64_t shape_[MS_MAX_RANK];
  int64_t stride_bytes_[most_operands][MS_MAX_RANK];
  char *data_[most_operands];
  int64_t elements_ = 1, outer_ = 1, inner_ = 1;
};

// Copies elements of 1, 2, 4 or 8 bytes between a strided run and contiguous memory.
void gather(char *to, const char *from, int64_t stride_bytes, int64_t count, int64_t bytes);
void scatter(char *to, int64_t stride_bytes, const char *from, int64_t count, int64_t bytes);

// Reads the float32 operands out, a (and b) of the same shape; used by add, mul and activation. `function` takes contiguous
// rows.
void run_binary(const op_arguments &arguments, void (*function)(float *out, const float *a, const float *b, int64_t n));
