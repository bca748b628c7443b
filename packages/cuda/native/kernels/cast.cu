// Between float dtypes (through float32, which holds both others exactly) and from integers to float32; any rank and strides.
#include "elements.h"
#include "float_types.h"

namespace {

SIMT_DEVICE float load_number(const void *data, int64_t dtype, int64_t index) {
  switch (dtype) {
    case MS_INT8: return static_cast<float>(static_cast<const int8_t *>(data)[index]);
    case MS_UINT8: return static_cast<float>(static_cast<const uint8_t *>(data)[index]);
    case MS_BOOL: return static_cast<const uint8_t *>(data)[index] != 0 ? 1.0f : 0.0f;
    case MS_INT32: return static_cast<float>(static_cast<const int32_t *>(data)[index]);
    case MS_INT64: return static_cast<float>(static_cast<const int64_t *>(data)[index]);
    default: return load_float(data, dtype, index);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) ms_cast(ms_cast_call call) {
  each_element<2>(call.elements, [&](const int64_t (&at)[2]) {
    store_float(call.out, call.out_dtype, at[0], load_number(call.x, call.x_dtype, at[1]));
  });
}
