// A program: ops over tensors, decoded and checked once, then run many times with other sizes and bindings. Running prepares an
// op's call only where something changed since the last time, and allocates nothing per op.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "memory.h"
#include "op_call.h"
#include "tensor_words.h"

namespace metashard {

class Program {
 public:
  // Decodes and checks the whole encoding (createProgram of native.ts); buffers must be `context`'s. Throws.
  Program(std::shared_ptr<Context> context, std::span<const double> code);

  // Where a binding points in a run; `buffer` is null where it is not bound.
  struct Binding {
    double id = 0;
    int64_t offset = 0;
    BufferRef buffer;
  };

  // Bindings that runs must name: one more than the largest index.
  size_t binding_count() const { return binding_count_; }
  size_t op_count() const { return ops_.size(); }
  // Runs ops first … end - 1. Call under the context's in_use.
  void run(const Dims &dims, std::span<const Binding> bindings, size_t first, size_t end);

  const std::shared_ptr<Context> context;

 private:
  enum class Source { buffer, binding, absent };
  struct Tensor {
    ms_tensor tensor{};  // symbols still in its shape; data set for tensors in buffers
    Source source = Source::absent;
    bool symbolic = false;
    uint32_t binding = 0;
    int64_t offset = 0;
    BufferRef buffer;
  };
  struct Op {
    ms_op_call call{};
    size_t first_tensor = 0;  // in op_tensors_: inputs, then outputs
    uint64_t prepared_for = 0;
    uint64_t scratch_for = 0;
  };

  size_t decode_tensor_list(std::span<const double> code, size_t count);
  size_t decode_op(std::span<const double> code, size_t at);
  uint32_t tensor_index(double word, bool output, Place place) const;
  void note_changes(const Dims &dims, std::span<const Binding> bindings);
  void prepare(Op &op, const Dims &dims, std::span<const Binding> bindings) const;
  void check_scratch_of(Op &op);
  void resolve(const Tensor &from, ms_tensor &to, const Dims &dims, std::span<const Binding> bindings, Place place) const;
  [[noreturn]] void fail_at(const Op &op, Failure failure) const;

  std::vector<Tensor> tensors_;
  std::vector<uint32_t> op_tensors_;
  std::vector<Op> ops_;
  BufferRef scratch_;
  size_t binding_count_ = 0;

  // What the prepared calls are for. A version is never used twice.
  struct Bound {
    double id = -1;
    int64_t offset = 0;
  };
  Dims dims_{-1, -1, -1};
  std::vector<Bound> bound_;
  uint64_t version_ = 0;
  uint64_t dims_version_ = 0;
};

IdTable<Program, IdKind::program> &programs();

}  // namespace metashard
