// Device memory that tells when a kernel writes beside it or leaves something unwritten.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/core/memory.h"
#include "tessera/core/check.h"

namespace tessera::testing {

/// Device memory between two guards; poisoned with 0xFF, a NaN pattern in every type used here. What fills it is
/// finished when it returns: a stream that does not wait for the default stream may come next, and cudaMemset, as a
/// cudaMemcpy from memory that is not page-locked, returns before the bytes are there.
class GuardedBuffer {
 public:
  static constexpr size_t kGuardBytes = 1024;
  static constexpr int kGuardByte = 0xA5;
  static constexpr int kPoisonByte = 0xFF;

  explicit GuardedBuffer(size_t bytes) : bytes_(bytes), memory_(bytes + 2 * kGuardBytes) {  // 0 is fine: only guards
    TESSERA_CUDA_CHECK(cudaMemset(memory_.data(), kGuardByte, memory_.bytes()));
    poison();
  }

  void poison() {
    TESSERA_CUDA_CHECK(cudaMemset(data(), kPoisonByte, bytes_));
    finish();
  }
  void* data() const { return memory_.at(kGuardBytes); }
  size_t bytes() const { return bytes_; }

  template <class T>
  std::vector<T> download(size_t count) const {
    std::vector<T> host(count);
    TESSERA_CUDA_CHECK(cudaMemcpy(host.data(), data(), count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
  template <class T>
  void upload(const std::vector<T>& host) {
    TESSERA_CHECK(host.size() * sizeof(T) <= bytes_, host.size(), bytes_);
    if (host.empty()) return;
    TESSERA_CUDA_CHECK(cudaMemcpy(data(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    finish();
  }
  bool guards_intact() const {
    std::vector<uint8_t> guards(2 * kGuardBytes);
    TESSERA_CUDA_CHECK(cudaMemcpy(guards.data(), memory_.data(), kGuardBytes, cudaMemcpyDeviceToHost));
    TESSERA_CUDA_CHECK(
        cudaMemcpy(guards.data() + kGuardBytes, memory_.at(kGuardBytes + bytes_), kGuardBytes, cudaMemcpyDeviceToHost));
    return std::all_of(guards.begin(), guards.end(), [](uint8_t byte) { return byte == kGuardByte; });
  }

 private:
  static void finish() { TESSERA_CUDA_CHECK(cudaStreamSynchronize(nullptr)); }

  size_t bytes_;
  cuda::DeviceBytes memory_;
};

}  // namespace tessera::testing
