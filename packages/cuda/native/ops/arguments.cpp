// See arguments.h. No op's own rules here.
#include "arguments.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace metashard::cuda {

namespace {

constexpr const char *dtype_names[] = {"float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"};
constexpr int64_t dtype_widths[] = {4, 2, 2, 1, 1, 4, 8, 1};
constexpr int dtype_count = 8;
constexpr uintptr_t packed_alignment = 64;

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
void normalize_strides(Operand &tensor) {
  int64_t natural = 1;
  for (int i = tensor.rank - 1; i >= 0; i--) {
    if (tensor.shape[i] <= 1) tensor.stride[i] = natural;
    natural *= tensor.shape[i] > 0 ? tensor.shape[i] : 1;
  }
}

}  // namespace

std::string format_text(const char *format, ...) {
  char text[320];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof text, format, values);
  va_end(values);
  return text;
}

int64_t dtype_bytes(int32_t dtype) { return dtype_widths[dtype]; }

Operand Arguments::read(const ms_tensor &tensor, const char *name, uint32_t dtypes, bool strided, bool packed,
                        bool required) const {
  EXPECT(tensor.dtype >= 0 && tensor.dtype < dtype_count, "%s: expected a dtype code 0 to 7 for %s, got %d", op_, name,
         tensor.dtype);
  EXPECT((dtypes >> tensor.dtype & 1) != 0, "%s: expected %s as %s, got %s", op_, name, dtypes_text(dtypes).c_str(),
         dtype_names[tensor.dtype]);
  EXPECT(tensor.rank >= 0 && tensor.rank <= MS_MAX_RANK, "%s: expected %s of rank 0 to 4, got %d", op_, name, tensor.rank);
  Operand result;
  for (int i = 0; i < tensor.rank; i++) {
    EXPECT(tensor.shape[i] >= 0, "%s: expected a shape without negative sizes for %s, got %s", op_, name,
           dims_text(tensor.shape, tensor.rank).c_str());
    result.shape[i] = tensor.shape[i];
    result.stride[i] = tensor.stride[i];
  }
  result.packed = tensor.layout == MS_PACKED_INT8;
  EXPECT(result.packed ? packed : strided && tensor.layout == MS_STRIDED, "%s: expected %s in the %s layout, got layout %d",
         op_, name, strided && packed ? "strided or packed" : strided ? "strided" : "packed", tensor.layout);
  result.data = tensor.data;
  result.dtype = tensor.dtype;
  result.rank = tensor.rank;
  result.present = true;
  EXPECT(result.data != nullptr || !required || element_count(tensor) == 0, "%s: expected %s, got none", op_, name);
  const uintptr_t alignment = result.packed ? packed_alignment : static_cast<uintptr_t>(dtype_bytes(tensor.dtype));
  const uintptr_t beyond = reinterpret_cast<uintptr_t>(result.data) % alignment;
  EXPECT(beyond == 0, "%s: expected %s aligned to %d bytes, got an address %d beyond", op_, name, static_cast<int>(alignment),
         static_cast<int>(beyond));
  normalize_strides(result);
  return result;
}

Operand Arguments::input(int index, const char *name, uint32_t dtypes) const {
  EXPECT(index < call_.n_inputs, "%s: expected %s, got %d inputs", op_, name, call_.n_inputs);
  return read(call_.inputs[index], name, dtypes, true, false, true);
}

Operand Arguments::input(int index, const char *name, int rank, uint32_t dtypes) const {
  const Operand tensor = input(index, name, dtypes);
  EXPECT(tensor.rank == rank, "%s: expected %s of rank %d, got %s", op_, name, rank,
         dims_text(tensor.shape, tensor.rank).c_str());
  return tensor;
}

Operand Arguments::optional(int index, const char *name, int rank, uint32_t dtypes) const {
  if (index >= call_.n_inputs || call_.inputs[index].data == nullptr) return {};
  return input(index, name, rank, dtypes);
}

Operand Arguments::matrix(int index, const char *name) const {
  EXPECT(index < call_.n_inputs, "%s: expected %s, got %d inputs", op_, name, call_.n_inputs);
  const Operand tensor = read(call_.inputs[index], name, i8_only, true, true, true);
  EXPECT(tensor.rank == 2, "%s: expected %s of rank 2, got %s", op_, name, dims_text(tensor.shape, tensor.rank).c_str());
  if (!tensor.packed) unit_stride(tensor, name);
  return tensor;
}

Operand Arguments::output(int index, const char *name, uint32_t dtypes) const {
  EXPECT(index < call_.n_outputs, "%s: expected an output %s, got %d outputs", op_, name, call_.n_outputs);
  return read(call_.outputs[index], name, dtypes, true, false, true);
}

Operand Arguments::output(int index, const char *name, int rank, uint32_t dtypes) const {
  const Operand tensor = output(index, name, dtypes);
  EXPECT(tensor.rank == rank, "%s: expected %s of rank %d, got %s", op_, name, rank,
         dims_text(tensor.shape, tensor.rank).c_str());
  unit_stride(tensor, name);
  EXPECT(rank != 2 || tensor.stride[0] >= tensor.shape[1], "%s: expected rows of %s that do not overlap, got stride %lld", op_,
         name, static_cast<long long>(tensor.stride[0]));
  return tensor;
}

Operand Arguments::output_matrix(int index, const char *name, bool may_be_strided, bool may_be_packed) const {
  EXPECT(index < call_.n_outputs, "%s: expected an output %s, got %d outputs", op_, name, call_.n_outputs);
  const Operand tensor = read(call_.outputs[index], name, i8_only, may_be_strided, may_be_packed, true);
  EXPECT(tensor.rank == 2, "%s: expected %s of rank 2, got %s", op_, name, dims_text(tensor.shape, tensor.rank).c_str());
  if (!tensor.packed) {
    unit_stride(tensor, name);
    EXPECT(tensor.stride[0] >= tensor.shape[1], "%s: expected rows of %s that do not overlap, got stride %lld", op_, name,
           static_cast<long long>(tensor.stride[0]));
  }
  return tensor;
}

void Arguments::shape(const Operand &tensor, const char *name, std::initializer_list<int64_t> dims) const {
  const auto rank = static_cast<int>(dims.size());
  const bool same = tensor.rank == rank && std::memcmp(tensor.shape, dims.begin(), dims.size() * sizeof(int64_t)) == 0;
  EXPECT(same, "%s: expected %s of shape %s, got %s", op_, name, dims_text(dims.begin(), rank).c_str(),
         dims_text(tensor.shape, tensor.rank).c_str());
}

void Arguments::same_shape(const Operand &tensor, const char *name, const Operand &like) const {
  const bool same = tensor.rank == like.rank && std::memcmp(tensor.shape, like.shape, sizeof like.shape) == 0;
  EXPECT(same, "%s: expected %s of shape %s, got %s", op_, name, dims_text(like.shape, like.rank).c_str(),
         dims_text(tensor.shape, tensor.rank).c_str());
}

void Arguments::unit_stride(const Operand &tensor, const char *name) const {
  const int last = tensor.rank - 1;
  EXPECT(last < 0 || tensor.stride[last] == 1, "%s: expected the last dimension of %s with stride 1, got stride %lld", op_,
         name, static_cast<long long>(tensor.stride[last]));
}

float Arguments::threshold(int index) const {
  const double wanted = attribute(index);
  EXPECT(wanted >= 0, "%s: expected a threshold of at least 0, got %g", op_, wanted);
  const auto rounded = static_cast<float>(wanted);
  return static_cast<double>(rounded) < wanted ? std::nextafterf(rounded, INFINITY) : rounded;
}

}  // namespace metashard::cuda
