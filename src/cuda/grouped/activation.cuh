// Activations of the expert layers, in fp32 with explicit rounding: the same bits wherever they are compiled in.
//
// gated:      h = act(gate) * up            non-gated: h = act(x)
// The kind is uniform in a launch, so the switch in apply_* costs one predictable branch.
#pragma once

#include <cstdint>

#include "cuda/ptx/warp.cuh"
#include "tessera/core/activation.h"

namespace tessera::grouped {

inline constexpr float kLog2E = 1.4426950408889634f;

// 1 / (1 + 2^x): the sigmoid of -x / log2(e). Saturates to 0 and 1 without NaN.
__device__ inline float sigmoid_of_exp2(float x) {
  return ptx::reciprocal_approx(__fadd_rn(1.0f, ptx::exp2_approx(x)));
}

__device__ inline float silu(float x) { return __fmul_rn(x, sigmoid_of_exp2(__fmul_rn(x, -kLog2E))); }

// x * Phi(x), the erf form.
__device__ inline float gelu_erf(float x) {
  constexpr float kInverseSqrt2 = 0.70710678118654752f;
  return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, erff(__fmul_rn(x, kInverseSqrt2))));
}

// x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)): the tanh form, written with a sigmoid.
__device__ inline float gelu_tanh(float x) {
  constexpr float kLinear = -kLog2E * 1.5957691216057308f;
  constexpr float kCubic = kLinear * 0.044715f;
  return __fmul_rn(x, sigmoid_of_exp2(__fmul_rn(x, __fmaf_rn(__fmul_rn(x, x), kCubic, kLinear))));
}

__device__ inline float clamped_swiglu(const Activation& params, float gate, float up) {
  const float g = fminf(gate, params.limit);
  const float u = __fadd_rn(fminf(fmaxf(up, -params.limit), params.limit), params.beta);
  return __fmul_rn(__fmul_rn(u, g), sigmoid_of_exp2(__fmul_rn(g, __fmul_rn(params.alpha, -kLog2E))));
}

// Calls function(act) with the activation as a callable, so that the switch stands outside the loops over accumulators.
template <class Function>
__device__ inline void with_gated(const Activation& params, Function&& function) {
  switch (params.kind) {
    case ActivationKind::silu: return function([](float gate, float up) { return __fmul_rn(silu(gate), up); });
    case ActivationKind::gelu_tanh:
      return function([](float gate, float up) { return __fmul_rn(gelu_tanh(gate), up); });
    case ActivationKind::gelu_erf: return function([](float gate, float up) { return __fmul_rn(gelu_erf(gate), up); });
    case ActivationKind::relu: return function([](float gate, float up) { return __fmul_rn(fmaxf(gate, 0.0f), up); });
    case ActivationKind::clamped_swiglu:
      return function([&](float gate, float up) { return clamped_swiglu(params, gate, up); });
    default: return function([](float gate, float up) { return __fmul_rn(gate, up); });
  }
}

template <class Function>
__device__ inline void with_plain(const Activation& params, Function&& function) {
  switch (params.kind) {
    case ActivationKind::silu: return function([](float x) { return silu(x); });
    case ActivationKind::gelu_tanh: return function([](float x) { return gelu_tanh(x); });
    case ActivationKind::gelu_erf: return function([](float x) { return gelu_erf(x); });
    case ActivationKind::relu: return function([](float x) { return fmaxf(x, 0.0f); });
    case ActivationKind::relu_squared:
      return function([](float x) { return __fmul_rn(fmaxf(x, 0.0f), fmaxf(x, 0.0f)); });
    default: return;
  }
}

}  // namespace tessera::grouped
