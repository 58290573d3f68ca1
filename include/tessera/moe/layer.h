// The MoE layer wherever it runs: one entry over CpuLayer and CudaLayer.
//
//   Layer layer(config, weights, {.device = Device::cuda});             // pointers are memory of that device
//   layer.run({x, topk_ids, false, topk_weights, out, num_tokens}, workspace, workspace_bytes, stream);
//
// See layer_config.h for what is computed. On a GPU, run enqueues on `stream` and returns; on the CPU it returns when
// the work is done and takes no stream. What either back end promises holds: cpu_layer.h, cuda_layer.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "tessera/moe/layer_config.h"

struct CUstream_st;

namespace tessera::moe {

enum class Device : uint8_t { cpu, cuda };

/// Whether layers can run there: CUDA needs a build with it and a Hopper GPU.
bool device_available(Device device);

struct Placement {
  Device device = Device::cpu;
  int num_threads = 0;  ///< of the CPU, 0: every processor that this process may use; CUDA takes 0 only
};

class LayerBackEnd;  // layer_back_end.h

class Layer {
 public:
  /// CUDA: on the current device. Throws Error naming what is wrong: the field of the configuration, or the device.
  Layer(const LayerConfig& config, const LayerWeights& weights, const Placement& placement = {});
  ~Layer();
  Layer(Layer&&) noexcept;
  Layer& operator=(Layer&&) noexcept;

  /// Exact size of the workspace for up to `max_tokens` tokens.
  size_t workspace_bytes(int32_t max_tokens) const;

  /// Throws Error for arguments that cannot be right before any work, also for a stream given to a CPU layer.
  void run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream = nullptr) const;

  const LayerConfig& config() const { return config_; }
  Device device() const { return device_; }

 private:
  LayerConfig config_;
  Device device_;
  std::unique_ptr<const LayerBackEnd> back_end_;
};

}  // namespace tessera::moe
