#include "gpu/moe/device_activation.h"

#include "cuda/core/cuda_check.h"
#include "cuda/grouped/activation.cuh"

namespace tessera::testing {
namespace {

constexpr unsigned kThreads = 256;

__global__ void gated_kernel(const Activation activation, const float* gate, const float* up, float* h, size_t count) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  grouped::with_gated(activation, [&](auto act) { h[i] = act(gate[i], up[i]); });
}

__global__ void plain_kernel(const Activation activation, const float* x, float* h, size_t count) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  h[i] = x[i];  // the identity leaves it so
  grouped::with_plain(activation, [&](auto act) { h[i] = act(x[i]); });
}

}  // namespace

DeviceActivation::~DeviceActivation() { cudaFree(memory_); }

void DeviceActivation::operator()(const Activation& activation, const float* gate, const float* up, float* h,
                                  size_t count) {
  if (count == 0) return;
  const std::lock_guard lock(mutex_);
  if (count > capacity_) {
    cudaFree(memory_);
    memory_ = nullptr;
    capacity_ = 0;
    TESSERA_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&memory_), 3 * count * sizeof(float)));
    capacity_ = count;
  }
  float* device_up = memory_ + capacity_;
  float* device_h = memory_ + 2 * capacity_;
  const size_t bytes = count * sizeof(float);
  const auto ctas = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  TESSERA_CUDA_CHECK(cudaMemcpy(memory_, gate, bytes, cudaMemcpyHostToDevice));
  if (up != nullptr) {
    TESSERA_CUDA_CHECK(cudaMemcpy(device_up, up, bytes, cudaMemcpyHostToDevice));
    gated_kernel<<<ctas, kThreads>>>(activation, memory_, device_up, device_h, count);
  } else {
    plain_kernel<<<ctas, kThreads>>>(activation, memory_, device_h, count);
  }
  TESSERA_CUDA_CHECK(cudaGetLastError());
  TESSERA_CUDA_CHECK(cudaMemcpy(h, device_h, bytes, cudaMemcpyDeviceToHost));
}

}  // namespace tessera::testing
