// The kernels' activation on its own: what stands between two products, evaluated by the device for the host's judge.
#pragma once

#include <mutex>

#include "moe/judge/exact_layer.h"

namespace tessera::testing {

/// Calls the functions that the expert GEMM has in its epilogue (cuda/grouped/activation.cuh) in a kernel of its own.
/// Any thread may call it; they wait for one another.
class DeviceActivation {
 public:
  DeviceActivation() = default;
  ~DeviceActivation();
  DeviceActivation(const DeviceActivation&) = delete;

  /// h[i] = act(gate[i]) * up[i], or act(gate[i]) with `up` null: host memory, `count` values each.
  void operator()(const Activation& activation, const float* gate, const float* up, float* h, size_t count);

  /// The same as a function that ExactLayer takes; refers to this.
  moe::ActivationFunction function() {
    return [this](const Activation& activation, const float* gate, const float* up, float* h, size_t count) {
      (*this)(activation, gate, up, h, count);
    };
  }

 private:
  std::mutex mutex_;
  float* memory_ = nullptr;  // gate, up, h: three times capacity_; guarded by mutex_
  size_t capacity_ = 0;      // guarded by mutex_
};

}  // namespace tessera::testing
