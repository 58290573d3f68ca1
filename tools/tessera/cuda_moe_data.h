// Weights and tokens of `tessera bench moe` on a GPU: the pattern of moe_data.h, repeated in device memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "cuda_device.h"
#include "moe_data.h"
#include "tessera/core/buffer.h"
#include "tessera/core/dtype.h"
#include "tessera/moe/layer_config.h"

namespace tessera::cli {

/// The pattern in device memory, and tensors made of it.
class DeviceFiller {
 public:
  DeviceFiller(const NormalPattern& pattern, DType dtype, float scale)
      : DeviceFiller(pattern.size(), dtype_size(dtype)) {
    Buffer<std::byte> rounded(memory_.bytes());
    pattern.fill(dtype, rounded.data(), size_, scale, 0);
    copy(rounded);
  }
  /// What such a tensor holds.
  DeviceFiller(const NormalPattern& pattern, DType dtype, const WeightTensor& tensor)
      : DeviceFiller(tensor.expert_bytes == 0 ? 0 : pattern.size(), tensor.element_bytes) {
    Buffer<std::byte> made(memory_.bytes());
    pattern.fill(tensor, dtype, made.data(), size_, 0);
    copy(made);
  }

  void fill(const DeviceMemory& tensor, size_t offset) const {
    if (tensor.bytes() == 0) return;
    size_t position = offset % size_;
    for (size_t done = 0, count = tensor.bytes() / element_bytes_; done < count;) {
      const size_t part = std::min(size_ - position, count - done);
      require_cuda(cudaMemcpyAsync(tensor.at(done * element_bytes_), memory_.at(position * element_bytes_),
                                   part * element_bytes_, cudaMemcpyDeviceToDevice, nullptr),
                   "fill a tensor");
      done += part;
      position = 0;
    }
  }

 private:
  DeviceFiller(size_t size, size_t element_bytes)
      : size_(size), element_bytes_(element_bytes), memory_(size * element_bytes) {}
  void copy(const Buffer<std::byte>& data) const {
    if (data.empty()) return;
    require_cuda(cudaMemcpy(memory_.get(), data.data(), data.size(), cudaMemcpyHostToDevice), "copy data");
  }

  size_t size_, element_bytes_;
  DeviceMemory memory_;
};

/// Of the four tensors of weights: the two of weights share a pattern, as do those of scales.
class WeightFiller {
 public:
  WeightFiller(const NormalPattern& pattern, const moe::LayerConfig& config)
      : tensors_(weight_tensors(config)),
        weights_(pattern, config.dtype, tensors_[0]),
        scales_(pattern, config.dtype, tensors_[2]) {}

  const DeviceFiller& of(size_t tensor) const {
    return tensors_[tensor].kind == WeightKind::scales ? scales_ : weights_;
  }

 private:
  std::array<WeightTensor, 4> tensors_;
  DeviceFiller weights_, scales_;
};

struct WeightSet {
  WeightSet(const moe::LayerConfig& config, const WeightFiller& filler, size_t set) : tensors(weight_tensors(config)) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      memory[i] = DeviceMemory(static_cast<size_t>(config.num_experts) * tensors[i].expert_bytes);
      filler.of(i).fill(memory[i], set * 2'000'003 + i * 1'000'003);
    }
  }

  moe::LayerWeights view() const {
    moe::LayerWeights weights;
    for (size_t i = 0; i < tensors.size(); ++i) weights.*tensors[i].field = memory[i].get();
    return weights;
  }
  const DeviceMemory& gate_up() const { return memory[0]; }
  const DeviceMemory& down() const { return memory[1]; }

  std::array<WeightTensor, 4> tensors;
  std::array<DeviceMemory, 4> memory;  // of tensors
};

}  // namespace tessera::cli
