#include "cpu/expert_ops.h"

#include <cmath>

#include "cpu/vector_clones.h"
#include "tessera/core/check.h"
#include "tessera/core/exact_math.h"

namespace tessera::cpu {
namespace {

inline float silu(float x) { return x * exact_sigmoid(x); }

// x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)): the tanh form without the cancellation of 1 + tanh.
inline float gelu_tanh(float x) {
  constexpr float kLinear = 1.5957691216057308f;
  constexpr float kCubic = kLinear * 0.044715f;
  return x * exact_sigmoid(x * (kLinear + kCubic * (x * x)));
}

// x Phi(x) by erfc: 1 + erf would lose every digit for x below -5.
inline float gelu_erf(float x) {
  constexpr float kInverseSqrt2 = 0.70710678118654752f;
  return 0.5f * x * std::erfc(-x * kInverseSqrt2);
}

inline float relu(float x) { return x <= 0.0f ? 0.0f : x; }

inline float clamped_swiglu(const Activation& a, float gate, float up) {
  const float g = gate > a.limit ? a.limit : gate;
  const float below = up > a.limit ? a.limit : up;
  const float u = below < -a.limit ? -a.limit : below;
  return (u + a.beta) * (g * exact_sigmoid(a.alpha * g));
}

}  // namespace

TESSERA_VECTOR_CLONES void apply_gated(const Activation& activation, const float* gate, const float* up, int64_t size,
                                       float* h) {
  const Activation a = activation;
  switch (a.kind) {
    case ActivationKind::identity:
      for (int64_t i = 0; i < size; ++i) h[i] = gate[i] * up[i];
      return;
    case ActivationKind::silu:
      for (int64_t i = 0; i < size; ++i) h[i] = silu(gate[i]) * up[i];
      return;
    case ActivationKind::gelu_tanh:
      for (int64_t i = 0; i < size; ++i) h[i] = gelu_tanh(gate[i]) * up[i];
      return;
    case ActivationKind::gelu_erf:
      for (int64_t i = 0; i < size; ++i) h[i] = gelu_erf(gate[i]) * up[i];
      return;
    case ActivationKind::relu:
      for (int64_t i = 0; i < size; ++i) h[i] = relu(gate[i]) * up[i];
      return;
    case ActivationKind::clamped_swiglu:
      for (int64_t i = 0; i < size; ++i) h[i] = clamped_swiglu(a, gate[i], up[i]);
      return;
    case ActivationKind::relu_squared: break;
  }
  TESSERA_CHECK(false, static_cast<int>(a.kind));
}

TESSERA_VECTOR_CLONES void apply_plain(const Activation& activation, const float* x, int64_t size, float* h) {
  switch (activation.kind) {
    case ActivationKind::identity:
      for (int64_t i = 0; i < size; ++i) h[i] = x[i];
      return;
    case ActivationKind::silu:
      for (int64_t i = 0; i < size; ++i) h[i] = silu(x[i]);
      return;
    case ActivationKind::gelu_tanh:
      for (int64_t i = 0; i < size; ++i) h[i] = gelu_tanh(x[i]);
      return;
    case ActivationKind::gelu_erf:
      for (int64_t i = 0; i < size; ++i) h[i] = gelu_erf(x[i]);
      return;
    case ActivationKind::relu:
      for (int64_t i = 0; i < size; ++i) h[i] = relu(x[i]);
      return;
    case ActivationKind::relu_squared:
      for (int64_t i = 0; i < size; ++i) h[i] = relu(x[i]) * relu(x[i]);
      return;
    case ActivationKind::clamped_swiglu: break;
  }
  TESSERA_CHECK(false, static_cast<int>(activation.kind));
}

TESSERA_VECTOR_CLONES void split_pairs(const float* pairs, int64_t size, float* even, float* odd) {
  for (int64_t i = 0; i < size; ++i) {
    even[i] = pairs[2 * i];
    odd[i] = pairs[2 * i + 1];
  }
}

TESSERA_VECTOR_CLONES void add_weighted(const float* values, float weight, int64_t size, float* sum) {
  for (int64_t i = 0; i < size; ++i) sum[i] += weight * values[i];
}

}  // namespace tessera::cpu
