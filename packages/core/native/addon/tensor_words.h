// Tensors as JavaScript writes them (TENSOR_WORDS and PROGRAM_TENSOR_WORDS of native.ts), checked and turned into ms_tensors.
// What an op asks of its tensors is checked by the backend; here only that they lie where they say, inside their memory.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "memory.h"
#include "metashard/backend.h"

namespace metashard {

constexpr size_t kTensorWords = 13;
constexpr size_t kProgramTensorWords = 14;
constexpr size_t kShapeWords = 11;  // dtype, layout, rank, shape ×4, stride ×4: the tail that both encodings share

// What the shape entries -1, -2, -3 stand for: tokens, sequences, outputs.
using Dims = std::array<int64_t, 3>;

// Names a tensor in errors: "input 2".
struct Place {
  const char *role;
  size_t index;
};

int64_t dtype_bytes(int32_t dtype);

// Bytes of an int8 matrix [rows, columns] in the packed layout (backend.h).
uint64_t packed_bytes(uint64_t rows, uint64_t columns);

// Reads an integer word; throws where it is none or out of range.
int64_t word_integer(double word, int64_t least, int64_t most, Place place, const char *field);

// Reads dtype, layout, rank, shape and stride; data stays null. With `symbols`, shape entries -3 … -1 are let through.
ms_tensor decode_shape(const double *words, bool symbols, Place place);

// Bytes from a tensor's first element to behind its last; UINT64_MAX where that is beyond any memory.
uint64_t span_bytes(const ms_tensor &tensor);

// Throws unless a tensor at `offset` is aligned and lies within `available` bytes.
void check_placement(const ms_tensor &tensor, uint64_t offset, uint64_t available, Place place);

// One TENSOR_WORDS encoding. The buffer is kept alive by `held`, which stays null for an absent tensor.
ms_tensor decode_tensor(const double *words, const Context &context, BufferRef &held, Place place);

}  // namespace metashard
