// Decoding and range checks of tensors.
#include "tensor_words.h"

#include <algorithm>
#include <cmath>

namespace metashard {
namespace {

constexpr int64_t kDtypeBytes[] = {4, 2, 2, 1, 1, 4, 8, 1};  // by ms_dtype
constexpr int64_t kLargest = (1ll << 53) - 1;
// Beyond any tensor, and small enough that a product of dimensions never overflows in a backend.
constexpr unsigned __int128 kMostElements = 1ull << 48;

}  // namespace

int64_t dtype_bytes(int32_t dtype) { return kDtypeBytes[dtype]; }

uint64_t packed_bytes(uint64_t rows, uint64_t columns) {
  return (rows + 15) / 16 * (16 * ((columns + 63) / 64 * 64) + 64);
}

int64_t word_integer(double word, int64_t least, int64_t most, Place place, const char *field) {
  if (!(word >= static_cast<double>(least) && word <= static_cast<double>(most)) || word != std::trunc(word)) {
    MS_REFUSE("%s %zu: expected %s from %lld to %lld, got %.17g", place.role, place.index, field,
              static_cast<long long>(least), static_cast<long long>(most), word);
  }
  return static_cast<int64_t>(word);
}

ms_tensor decode_shape(const double *words, bool symbols, Place place) {
  ms_tensor tensor{};
  tensor.dtype = static_cast<int32_t>(word_integer(words[0], MS_FLOAT32, MS_BOOL, place, "a dtype"));
  tensor.layout = static_cast<int32_t>(word_integer(words[1], MS_STRIDED, MS_PACKED_INT8, place, "a layout"));
  tensor.rank = static_cast<int32_t>(word_integer(words[2], 0, MS_MAX_RANK, place, "a rank"));
  std::fill(tensor.shape, tensor.shape + MS_MAX_RANK, 1);
  const bool packed = tensor.layout == MS_PACKED_INT8;
  if (packed && (tensor.rank != 2 || tensor.dtype != MS_INT8)) {
    MS_REFUSE("%s %zu: expected an int8 matrix in the packed layout, got dtype %d of rank %d", place.role, place.index,
              tensor.dtype, tensor.rank);
  }
  for (int i = 0; i < tensor.rank; i++) {
    tensor.shape[i] = word_integer(words[3 + i], symbols ? -3 : 0, kLargest, place, "a dimension");
    if (!packed) tensor.stride[i] = word_integer(words[3 + MS_MAX_RANK + i], 0, kLargest, place, "a stride");
  }
  return tensor;
}

uint64_t span_bytes(const ms_tensor &tensor) {
  unsigned __int128 last = 0, elements = 1;
  bool empty = false;
  for (int i = 0; i < tensor.rank; i++) {
    const auto size = static_cast<uint64_t>(tensor.shape[i]);
    empty |= size == 0;
    elements *= std::max<uint64_t>(size, 1);
    if (elements > kMostElements) return UINT64_MAX;
    if (size > 0) last += static_cast<unsigned __int128>(size - 1) * static_cast<uint64_t>(tensor.stride[i]);
  }
  if (tensor.layout == MS_PACKED_INT8) {
    return packed_bytes(static_cast<uint64_t>(tensor.shape[0]), static_cast<uint64_t>(tensor.shape[1]));
  }
  if (empty) return 0;
  const unsigned __int128 bytes = (last + 1) * static_cast<uint64_t>(kDtypeBytes[tensor.dtype]);
  return bytes > UINT64_MAX ? UINT64_MAX : static_cast<uint64_t>(bytes);
}

void check_placement(const ms_tensor &tensor, uint64_t offset, uint64_t available, Place place) {
  const uint64_t alignment = tensor.layout == MS_PACKED_INT8 ? 64 : static_cast<uint64_t>(kDtypeBytes[tensor.dtype]);
  if (offset % alignment != 0) {
    MS_REFUSE("%s %zu: expected a byte offset that %llu divides, got %llu", place.role, place.index,
              static_cast<unsigned long long>(alignment), static_cast<unsigned long long>(offset));
  }
  const uint64_t bytes = span_bytes(tensor);
  if (offset > available || bytes > available - offset) {
    MS_REFUSE("%s %zu: expected a tensor within its buffer of %llu bytes, got %llu bytes at offset %llu", place.role,
              place.index, static_cast<unsigned long long>(available), static_cast<unsigned long long>(bytes),
              static_cast<unsigned long long>(offset));
  }
}

ms_tensor decode_tensor(const double *words, const Context &context, BufferRef &held, Place place) {
  const double id = words[0];
  if (id == 0) return {};
  held = buffers().find(id);
  if (held == nullptr || held->context.get() != &context) {
    MS_REFUSE("%s %zu: expected the id of a live buffer of this context, got %.17g", place.role, place.index, id);
  }
  const int64_t offset = word_integer(words[1], 0, kLargest, place, "a byte offset");
  ms_tensor tensor = decode_shape(words + 2, false, place);
  check_placement(tensor, static_cast<uint64_t>(offset), held->bytes, place);
  tensor.data = held->data + offset;
  return tensor;
}

}  // namespace metashard
