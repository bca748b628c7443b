// See int8_product.h.
#include "int8_product.h"

namespace metashard::cuda {

namespace {

// [rows to a multiple of 48][K to a multiple of 64] bytes, as ops.ts counts.
int64_t padded_CA_bytes(const Operand &CA) { return round_up(CA.shape[0], 48) * round_up(CA.shape[1], 64) + 4096; }

bool is_whole_words(const Operand &CA) {
  return reinterpret_cast<uintptr_t>(CA.data) % 4 == 0 && CA.stride[0] % 4 == 0 && CA.shape[1] % 4 == 0;
}

}  // namespace

size_t packed_scratch(const Operand &CB) {
  return CB.packed ? 0 : static_cast<size_t>(round_up(packed_int8_bytes(CB.shape[0], CB.shape[1]), 64));
}

const int8_t *packed_form(const Operand &CB, void *memory, const Launcher &launcher) {
  if (CB.packed) return CB.as<int8_t>();
  auto *packed = static_cast<int8_t *>(memory);
  launcher.launch(launcher.kernels.ms_pack_int8, {ceil_div(CB.shape[0], 16)}, 256,
                  ms_pack_int8_call{CB.as<int8_t>(), packed, CB.shape[0], CB.shape[1], CB.stride[0]});
  return packed;
}

size_t int8_product_scratch(const Int8Operands &operands) {
  return static_cast<size_t>(padded_CA_bytes(operands.CA)) + packed_scratch(operands.CB);
}

ms_int8_product prepare_int8_product(const Int8Operands &operands, const Launcher &launcher) {
  const auto &[CA, CB, scratch] = operands;
  const int64_t rows = CA.shape[0], K = CA.shape[1], N = CB.shape[0];
  auto *memory = static_cast<int8_t *>(scratch);
  ms_int8_product product = {.CA = CA.as<int32_t>(), .CB = nullptr, .rows = rows, .N = N, .K = K,
                             .words = K / 4, .CA_stride = CA.stride[0] / 4};
  if (!is_whole_words(CA)) {
    const int64_t words = ceil_div(K, 4);
    auto *padded = reinterpret_cast<int32_t *>(memory);
    launcher.launch(launcher.kernels.ms_int8_pad_rows, {rows}, 128,
                    ms_int8_pad_rows_call{CA.as<int8_t>(), padded, K, CA.stride[0], words});
    product.CA = padded;
    product.words = product.CA_stride = words;
  }
  product.CB = packed_form(CB, memory + padded_CA_bytes(CA), launcher);
  return product;
}

}  // namespace metashard::cuda
