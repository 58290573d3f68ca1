// A layer whose output is compared on the device with what it first was.
#pragma once

#include <memory>
#include <vector>

#include "cuda/core/memory.h"
#include "cuda/core/stream.h"
#include "endurance/gpu/device_work.h"
#include "gpu/moe/gpu_fixture.h"

namespace tessera::testing {

/// Twelve layers: both types, both formats, batches small and large, with what else a layer may have.
std::vector<LayerCase> repeated_cases();

class RepeatedLayer {
 public:
  explicit RepeatedLayer(const LayerCase& c)
      : run_(LayerData(c)),
        layer_(run_.config(), run_.weights()),
        bytes_(run_.out().bytes()),
        golden_(bytes_),
        workspace_(layer_.workspace_bytes(c.tokens)),
        differing_(cuda::DeviceBytes::zeros(sizeof(unsigned long long))) {
    const std::vector<uint16_t> bits = run_.run();
    problem_ = run_.judge(bits, run_.reference());
    TESSERA_CUDA_CHECK(cudaMemcpy(golden_.data(), run_.out().data(), bytes_, cudaMemcpyDeviceToDevice));
  }

  /// What the judge said of the first output; empty: it is right.
  const std::string& problem() const { return problem_; }
  /// Enqueues a run into poisoned memory, and the comparison.
  void enqueue(cudaStream_t stream) {
    TESSERA_CUDA_CHECK(cudaMemsetAsync(run_.out().data(), GuardedBuffer::kPoisonByte, bytes_, stream));
    layer_.run(run_.inputs(), workspace_.data(), workspace_.bytes(), stream);
    count_differing(run_.out().data(), golden_.data(), bytes_, differing_.as<unsigned long long>(), stream);
  }
  /// Bytes that differed so far. Synchronises.
  unsigned long long differing() const {
    unsigned long long count = 0;
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    TESSERA_CUDA_CHECK(cudaMemcpy(&count, differing_.data(), sizeof(count), cudaMemcpyDeviceToHost));
    return count;
  }
  /// Plants a difference: one byte of what the output is compared with.
  void spoil() { TESSERA_CUDA_CHECK(cudaMemset(golden_.data(), 0x55, 1)); }
  bool guards_intact() { return run_.out().guards_intact() && workspace_.guards_intact(); }

 private:
  LayerRun run_;
  moe::CudaLayer layer_;
  size_t bytes_;
  cuda::DeviceBytes golden_;
  GuardedBuffer workspace_;
  cuda::DeviceBytes differing_;
  std::string problem_;
};

}  // namespace tessera::testing
