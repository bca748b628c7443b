// What the ops over int8 weights share: operands brought into the form their kernels read, and the scratch for that.
#pragma once
#include "op.h"

namespace metashard::cuda {

constexpr int64_t longest_K = 133144;  // 127 · 127 · K stays below 2³¹

// Bytes of an int8 matrix [N, K] in the packed layout of backend.h.
constexpr int64_t packed_int8_bytes(int64_t N, int64_t K) { return ceil_div(N, 16) * (16 * round_up(K, 64) + 64); }

// Bytes in which packed_form packs a CB that comes strided.
size_t packed_scratch(const Operand &CB);

// CB itself, or packed into `memory`, which is enqueued.
const int8_t *packed_form(const Operand &CB, void *memory, const Launcher &launcher);

// CA [rows, K] and CB [N, K] of a checked call.
struct Int8Operands {
  Operand CA, CB;
  void *scratch;
};

// Activations in whole words, and the weight packed where it comes strided; as ops.ts bounds it.
size_t int8_product_scratch(const Int8Operands &operands);

// Enqueues what has to be copied into scratch first: a CA whose rows are no whole aligned words, a strided CB.
ms_int8_product prepare_int8_product(const Int8Operands &operands, const Launcher &launcher);

// `few` for up to 8 rows, else `tiles`.
template <class Call>
void launch_int8_product(const Launcher &launcher, const Kernel<void(Call)> &few, const Kernel<void(Call)> &tiles,
                         const Call &call) {
  const ms_int8_product &product = call.product;
  if (product.rows <= 8) {
    launcher.launch(few, {ceil_div(product.N, 16)}, 256, call);
  } else {
    launcher.launch(tiles, {ceil_div(product.N, 64), ceil_div(product.rows, 64)}, 256, call);
  }
}

}  // namespace metashard::cuda
