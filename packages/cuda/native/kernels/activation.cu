// The activation functions of ACTIVATION_KINDS in ops.ts, elementwise; any rank and strides.
#include "elements.h"

namespace {

SIMT_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

SIMT_DEVICE float rectified(float x) { return x < 0.0f ? 0.0f : x; }  // NaN stays

// x · (1 + tanh u) / 2 = x · σ(2u), u = √(2/π) (x + 0.044715 x³) (Hendrycks & Gimpel 2016).
SIMT_DEVICE float gelu_tanh(float x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

// x · Φ(x); erfc keeps the digits that 1 + erf loses where x is negative.
SIMT_DEVICE float gelu(float x) { return x * (0.5f * erfcf(x * -0.707106781f)); }

SIMT_DEVICE float activate(float x, int64_t kind) {
  switch (kind) {
    case 0: return rectified(x);
    case 1: return gelu(x);
    case 2: return gelu_tanh(x);
    case 3: return x * sigmoid(1.702f * x);
    case 4: return x * sigmoid(x);
    case 5: return tanhf(x);
    case 6: return sigmoid(x);
    default: return rectified(x) * rectified(x);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) ms_activation(ms_activation_call call) {
  each_element<2>(call.elements, [&](const int64_t (&at)[2]) { call.out[at[0]] = activate(call.x[at[1]], call.kind); });
}
