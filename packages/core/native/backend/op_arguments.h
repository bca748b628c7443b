// Checking an op's call and saying what is wrong, for every backend: compiled into each plugin (op_arguments.cc). A refusal is an
// op_failure, which the plugin turns into an ms_error at its boundary. Messages read "op: expected …, got …", one line, no
// trailing period. Only what the host can see is checked: counts, shapes, dtypes, strides, alignment, attributes, never data.
#pragma once
#include <stdint.h>

#include <initializer_list>

#include "metashard/backend.h"

namespace metashard {

struct op_failure {
  ms_error error;
};

[[noreturn]] void fail(ms_status status, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#define EXPECT(condition, ...)                                                        \
  do {                                                                                \
    if (!(condition)) ::metashard::fail(MS_INVALID, __FILE__, __LINE__, __VA_ARGS__); \
  } while (0)

// Sets of dtypes, one bit each.
constexpr uint32_t dtype_bit(ms_dtype dtype) { return 1u << dtype; }
constexpr uint32_t f32_only = dtype_bit(MS_FLOAT32);
constexpr uint32_t i32_only = dtype_bit(MS_INT32);
constexpr uint32_t i8_only = dtype_bit(MS_INT8);
constexpr uint32_t any_float = f32_only | dtype_bit(MS_FLOAT16) | dtype_bit(MS_BFLOAT16);
constexpr uint32_t any_dtype = 0xff;

int64_t dtype_bytes(int32_t dtype);

// A tensor as ops use it: strides of dimensions of size 1 are set to what a contiguous tensor has.
struct operand {
  char *data = nullptr;  // on the device; NULL: absent, or no elements
  int32_t dtype = 0;
  int32_t rank = 0;
  int64_t shape[MS_MAX_RANK] = {1, 1, 1, 1};
  int64_t stride[MS_MAX_RANK] = {0, 0, 0, 0};
  bool packed = false;
  bool present = false;

  template <typename T>
  T *as() const {
    return reinterpret_cast<T *>(data);
  }
};

// Reads the operands of one call, with their names for messages. Every getter throws op_failure.
class op_arguments {
 public:
  op_arguments(const char *op, const ms_op_call &call) : op_(op), call_(call) {}

  operand input(int index, const char *name, int rank, uint32_t dtypes) const;
  // Any rank.
  operand input(int index, const char *name, uint32_t dtypes) const;
  // As input, or an operand that is not present.
  operand optional(int index, const char *name, int rank, uint32_t dtypes) const;
  // An int8 matrix, strided or packed.
  operand matrix(int index, const char *name) const;
  operand output(int index, const char *name, int rank, uint32_t dtypes) const;
  operand output(int index, const char *name, uint32_t dtypes) const;
  operand output_matrix(int index, const char *name, bool may_be_strided, bool may_be_packed) const;

  void shape(const operand &tensor, const char *name, std::initializer_list<int64_t> dims) const;
  void same_shape(const operand &tensor, const char *name, const operand &like) const;
  // The last dimension has stride 1.
  void unit_stride(const operand &tensor, const char *name) const;
  double attribute(int index) const { return call_.attributes[index]; }
  // Smallest float32 that is not below the attribute: for float32 x, |x| < result says what |x| < attribute says in float64.
  float threshold(int index) const;
  const char *op() const { return op_; }
  void *scratch() const { return call_.scratch; }

 private:
  operand read(const ms_tensor &tensor, const char *name, uint32_t dtypes, bool strided, bool packed, bool required) const;

  const char *op_;
  const ms_op_call &call_;
};

// How many operands an op of a backend takes (metashard/ops.def).
struct op_counts {
  const char *name;
  int32_t inputs, outputs, attributes;
};

void check_counts(const op_counts &op, const ms_op_call &call);
// The call's scratch holds `needed` bytes, aligned to 64.
void check_scratch(const char *op, const ms_op_call &call, size_t needed);

}  // namespace metashard
