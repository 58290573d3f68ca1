// Activations of an expert: what stands between its two matrix products.
//
//   gated:      h = act(gate) * up          non-gated: h = act(x)
#pragma once

#include <cstdint>

namespace tessera {

enum class ActivationKind : int32_t {
  identity,        ///< gated: gate * up
  silu,            ///< gated: SwiGLU
  gelu_tanh,       ///< gated: GeGLU, tanh form
  gelu_erf,        ///< gated: GeGLU, erf form
  relu,            ///< gated: max(gate, 0) * up
  relu_squared,    ///< non-gated only: max(x, 0)^2
  clamped_swiglu,  ///< gated only: (up + beta) * gate * sigmoid(alpha * gate) with gate <= limit and |up| <= limit
};

struct Activation {
  ActivationKind kind = ActivationKind::silu;
  float alpha = 1.0f;  ///< of clamped_swiglu, as are the next two: for any other kind they keep these values
  float beta = 0.0f;
  float limit = 0.0f;
};

}  // namespace tessera
