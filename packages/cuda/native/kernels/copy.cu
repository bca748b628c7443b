// A copy of a strided view, any dtype, rank and strides: elements move as bits.
#include "elements.h"

namespace {

template <class Bits>
SIMT_DEVICE void copy_elements(const ms_copy_call &call) {
  each_element<2>(call.elements, [&](const int64_t (&at)[2]) {
    static_cast<Bits *>(call.out)[at[0]] = static_cast<const Bits *>(call.x)[at[1]];
  });
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) ms_copy(ms_copy_call call) {
  switch (call.element_bytes) {
    case 1: return copy_elements<uint8_t>(call);
    case 2: return copy_elements<uint16_t>(call);
    case 4: return copy_elements<uint32_t>(call);
    default: return copy_elements<uint64_t>(call);
  }
}
