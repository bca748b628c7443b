// Checking an op's call and saying what is wrong, as the CPU's check.h does: messages read "op: expected …, got …", one line,
// no trailing period. Only what the host can see is checked: shapes, dtypes, strides, alignment, attributes, never device
// memory.
#pragma once
#include <initializer_list>

#include "../status.h"

namespace metashard::cuda {

std::string format_text(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define EXPECT(condition, ...)                                         \
  do {                                                                 \
    if (!(condition)) refuse(MS_INVALID, format_text(__VA_ARGS__));    \
  } while (false)

// Sets of dtypes, one bit each.
constexpr uint32_t dtype_bit(ms_dtype dtype) { return 1u << dtype; }
constexpr uint32_t f32_only = dtype_bit(MS_FLOAT32);
constexpr uint32_t i32_only = dtype_bit(MS_INT32);
constexpr uint32_t i8_only = dtype_bit(MS_INT8);
constexpr uint32_t any_float = f32_only | dtype_bit(MS_FLOAT16) | dtype_bit(MS_BFLOAT16);
constexpr uint32_t any_dtype = 0xff;

int64_t dtype_bytes(int32_t dtype);

// A tensor as ops use it: strides of dimensions of size 1 are set to what a contiguous tensor has.
struct Operand {
  void *data = nullptr;  // device memory; null: absent, or no elements
  int32_t dtype = 0;
  int32_t rank = 0;
  int64_t shape[MS_MAX_RANK] = {1, 1, 1, 1};
  int64_t stride[MS_MAX_RANK] = {0, 0, 0, 0};
  bool packed = false;
  bool present = false;

  template <class T>
  T *as() const {
    return static_cast<T *>(data);
  }
};

// Reads the operands of one call, with their names for messages. Every getter throws.
class Arguments {
 public:
  Arguments(const char *op, const ms_op_call &call) : op_(op), call_(call) {}

  Operand input(int index, const char *name, int rank, uint32_t dtypes) const;
  Operand input(int index, const char *name, uint32_t dtypes) const;  // of any rank
  // As input, or an operand that is not present.
  Operand optional(int index, const char *name, int rank, uint32_t dtypes) const;
  // An int8 matrix, strided or packed.
  Operand matrix(int index, const char *name) const;
  Operand output(int index, const char *name, int rank, uint32_t dtypes) const;
  Operand output(int index, const char *name, uint32_t dtypes) const;
  Operand output_matrix(int index, const char *name, bool may_be_strided, bool may_be_packed) const;

  void shape(const Operand &tensor, const char *name, std::initializer_list<int64_t> dims) const;
  void same_shape(const Operand &tensor, const char *name, const Operand &like) const;
  // The last dimension has stride 1.
  void unit_stride(const Operand &tensor, const char *name) const;
  double attribute(int index) const { return call_.attributes[index]; }
  // Smallest float32 that is not below the attribute: for float32 x, |x| < result says what |x| < attribute says in float64.
  float threshold(int index) const;
  const char *op() const { return op_; }
  void *scratch() const { return call_.scratch; }

 private:
  Operand read(const ms_tensor &tensor, const char *name, uint32_t dtypes, bool strided, bool packed, bool required) const;

  const char *op_;
  const ms_op_call &call_;
};

}  // namespace metashard::cuda
