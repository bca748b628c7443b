// See op_arguments.h. No op's own rules here.
#include "op_arguments.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <string>

namespace metashard {

namespace {

constexpr const char *dtype_names[] = {"float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"};
constexpr int64_t dtype_widths[] = {4, 2, 2, 1, 1, 4, 8, 1};
constexpr int dtype_count = 8;
constexpr uintptr_t packed_alignment = 64, scratch_alignment = 64;

std::string dims_text(const int64_t *dims, int rank) {
  std::string text = "[";
  for (int i = 0; i < rank; i++) text += (i > 0 ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

std::string dtypes_text(uint32_t dtypes) {
  std::string text;
  for (int i = 0; i < dtype_count; i++) {
    if ((dtypes >> i & 1) != 0) text += (text.empty() ? "" : " or ") + std::string(dtype_names[i]);
  }
  return text;
}

int64_t element_count(const ms_tensor &tensor) {
  int64_t count = 1;
  for (int i = 0; i < tensor.rank; i++) count *= tensor.shape[i];
  return count;
}

// Strides of a contiguous tensor where a dimension has one element (or none), so that they may be used without asking.
void normalize_strides(operand &tensor) {
  int64_t natural = 1;
  for (int i = tensor.rank - 1; i >= 0; i--) {
    if (tensor.shape[i] <= 1) tensor.stride[i] = natural;
    natural *= tensor.shape[i] > 0 ? tensor.shape[i] : 1;
  }
}

}  // namespace

void fail(ms_status status, const char *file, int line, const char *format, ...) {
  op_failure failure = {};
  failure.error.status = status;
  failure.error.file = file;
  failure.error.line = line;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(failure.error.message, sizeof failure.error.message, format, arguments);
  va_end(arguments);
  throw failure;
}

int64_t dtype_bytes(int32_t dtype) { return dtype_widths[dtype]; }

operand op_arguments::read(const ms_tensor &tensor, const char *name, uint32_t dtypes, bool strided, bool packed,
                           bool required) const {
  EXPECT(tensor.dtype >= 0 && tensor.dtype < dtype_count, "%s: expected a dtype code 0 to 7 for %s, got %d", op_, name,
         tensor.dtype);
  EXPECT((dtypes >> tensor.dtype & 1) != 0, "%s: expected %s as %s, got %s", op_, name, dtypes_text(dtypes).c_str(),
         dtype_names[tensor.dtype]);
  EXPECT(tensor.rank >= 0 && tensor.rank <= MS_MAX_RANK, "%s: expected %s of rank 0 to 4, got %d", op_, name, tensor.rank);
  operand result;
  for (int i = 0; i < tensor.rank; i++) {
    EXPECT(tensor.shape[i] >= 0, "%s: expected a shape without negative sizes for %s, got %s", op_, name,
           dims_text(tensor.shape, tensor.rank).c_str());
    result.shape[i] = tensor.shape[i];
    result.stride[i] = tensor.stride[i];
  }
  result.packed = tensor.layout == MS_PACKED_INT8;
  EXPECT(result.packed ? packed : strided && tensor.layout == MS_STRIDED, "%s: expected %s in the %s layout, got layout %d",
         op_, name,
         strided && packed ? "strided or packed"
         : strided         ? "strided"
                           : "packed",
         tensor.layout);
  result.data = static_cast<char *>(tensor.data);
  result.dtype = tensor.dtype;
  result.rank = tensor.rank;
  result.present = true;
  EXPECT(result.data != nullptr || !required || element_count(tensor) == 0, "%s: expected %s, got none", op_, name);
  const uintptr_t alignment = result.packed ? packed_alignment : uintptr_t(dtype_bytes(tensor.dtype));
  EXPECT(uintptr_t(result.data) % alignment == 0, "%s: expected %s aligned to %d bytes, got an address %d beyond", op_, name,
         int(alignment), int(uintptr_t(result.data) % alignment));
  normalize_strides(result);
  return result;
}

operand op_arguments::input(int index, const char *name, uint32_t dtypes) const {
  EXPECT(index < call_.n_inputs, "%s: expected %s, got %d inputs", op_, name, call_.n_inputs);
  return read(call_.inputs[index], name, dtypes, true, false, true);
}

operand op_arguments::input(int index, const char *name, int rank, uint32_t dtypes) const {
  const operand tensor = input(index, name, dtypes);
  EXPECT(tensor.rank == rank, "%s: expected %s of rank %d, got %s", op_, name, rank,
         dims_text(tensor.shape, tensor.rank).c_str());
  return tensor;
}

operand op_arguments::optional(int index, const char *name, int rank, uint32_t dtypes) const {
  if (index >= call_.n_inputs || call_.inputs[index].data == nullptr) return {};
  return input(index, name, rank, dtypes);
}

operand op_arguments::matrix(int index, const char *name) const {
  EXPECT(index < call_.n_inputs, "%s: expected %s, got %d inputs", op_, name, call_.n_inputs);
  const operand tensor = read(call_.inputs[index], name, i8_only, true, true, true);
  EXPECT(tensor.rank == 2, "%s: expected %s of rank 2, got %s", op_, name, dims_text(tensor.shape, tensor.rank).c_str());
  if (!tensor.packed) unit_stride(tensor, name);
  return tensor;
}

operand op_arguments::output(int index, const char *name, uint32_t dtypes) const {
  EXPECT(index < call_.n_outputs, "%s: expected an output %s, got %d outputs", op_, name, call_.n_outputs);
  return read(call_.outputs[index], name, dtypes, true, false, true);
}

operand op_arguments::output(int index, const char *name, int rank, uint32_t dtypes) const {
  const operand tensor = output(index, name, dtypes);
  EXPECT(tensor.rank == rank, "%s: expected %s of rank %d, got %s", op_, name, rank,
         dims_text(tensor.shape, tensor.rank).c_str());
  unit_stride(tensor, name);
  EXPECT(rank != 2 || tensor.stride[0] >= tensor.shape[1], "%s: expected rows of %s that do not overlap, got stride %lld", op_,
         name, static_cast<long long>(tensor.stride[0]));
  return tensor;
}

operand op_arguments::output_matrix(int index, const char *name, bool may_be_strided, bool may_be_packed) const {
  EXPECT(index < call_.n_outputs, "%s: expected an output %s, got %d outputs", op_, name, call_.n_outputs);
  const operand tensor = read(call_.outputs[index], name, i8_only, may_be_strided, may_be_packed, true);
  EXPECT(tensor.rank == 2, "%s: expected %s of rank 2, got %s", op_, name, dims_text(tensor.shape, tensor.rank).c_str());
  if (!tensor.packed) {
    unit_stride(tensor, name);
    EXPECT(tensor.stride[0] >= tensor.shape[1], "%s: expected rows of %s that do not overlap, got stride %lld", op_, name,
           static_cast<long long>(tensor.stride[0]));
  }
  return tensor;
}

void op_arguments::shape(const operand &tensor, const char *name, std::initializer_list<int64_t> dims) const {
  const bool same = tensor.rank == int(dims.size()) && memcmp(tensor.shape, dims.begin(), dims.size() * sizeof(int64_t)) == 0;
  EXPECT(same, "%s: expected %s of shape %s, got %s", op_, name, dims_text(dims.begin(), int(dims.size())).c_str(),
         dims_text(tensor.shape, tensor.rank).c_str());
}

void op_arguments::same_shape(const operand &tensor, const char *name, const operand &like) const {
  const bool same = tensor.rank == like.rank && memcmp(tensor.shape, like.shape, sizeof like.shape) == 0;
  EXPECT(same, "%s: expected %s of shape %s, got %s", op_, name, dims_text(like.shape, like.rank).c_str(),
         dims_text(tensor.shape, tensor.rank).c_str());
}

void op_arguments::unit_stride(const operand &tensor, const char *name) const {
  const int last = tensor.rank - 1;
  EXPECT(last < 0 || tensor.stride[last] == 1, "%s: expected the last dimension of %s with stride 1, got stride %lld", op_,
         name, static_cast<long long>(tensor.stride[last]));
}

float op_arguments::threshold(int index) const {
  const double wanted = attribute(index);
  EXPECT(wanted >= 0, "%s: expected a threshold of at least 0, got %g", op_, wanted);
  const float rounded = float(wanted);
  return double(rounded) < wanted ? nextafterf(rounded, INFINITY) : rounded;
}

void check_counts(const op_counts &op, const ms_op_call &call) {
  EXPECT(call.n_inputs >= 0 && call.n_inputs <= op.inputs, "%s: expected at most %d inputs, got %d", op.name, op.inputs,
         call.n_inputs);
  EXPECT(call.n_outputs == op.outputs, "%s: expected %d outputs, got %d", op.name, op.outputs, call.n_outputs);
  EXPECT(call.n_attributes == op.attributes, "%s: expected %d attributes, got %d", op.name, op.attributes, call.n_attributes);
}

void check_scratch(const char *op, const ms_op_call &call, size_t needed) {
  if (needed == 0) return;
  EXPECT(call.scratch != nullptr && call.scratch_bytes >= needed, "%s: expected %zu bytes of scratch, got %zu", op, needed,
         call.scratch == nullptr ? size_t(0) : call.scratch_bytes);
  const uintptr_t beyond = uintptr_t(call.scratch) % scratch_alignment;
  EXPECT(beyond == 0, "%s: expected scratch aligned to 64 bytes, got an address %d beyond", op, int(beyond));
}

}  // namespace metashard
