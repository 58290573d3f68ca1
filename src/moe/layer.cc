#include "tessera/moe/layer.h"

#include <string>

#include "moe/back_end.h"
#include "tessera/core/error.h"
#include "tessera/cuda/device.h"
#include "tessera/moe/cpu_layer.h"

namespace tessera::moe {
namespace {

class CpuBackEnd final : public LayerBackEnd {
 public:
  CpuBackEnd(const LayerConfig& config, const LayerWeights& weights, int num_threads)
      : layer_(config, weights, num_threads) {}

  size_t workspace_bytes(int32_t max_tokens) const override { return layer_.workspace_bytes(max_tokens); }
  void run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const override {
    if (stream != nullptr) throw Error("stream", "a stream", "none: the layer runs on the CPU");
    layer_.run(inputs, workspace, workspace_size);
  }

 private:
  CpuLayer layer_;
};

#ifndef TESSERA_HAVE_CUDA
std::unique_ptr<const LayerBackEnd> make_cuda_back_end(const LayerConfig&, const LayerWeights&) { return nullptr; }
#endif

std::unique_ptr<const LayerBackEnd> make_back_end(const LayerConfig& config, const LayerWeights& weights,
                                                  const Placement& placement) {
  if (placement.device == Device::cpu) return std::make_unique<CpuBackEnd>(config, weights, placement.num_threads);
  if (const std::string why = cuda::why_current_unusable(); !why.empty())
    throw Error("device cuda", why, "a Hopper GPU and a build with CUDA, or device cpu");
  return make_cuda_back_end(config, weights);
}

}  // namespace

bool device_available(Device device) { return device == Device::cpu || cuda::why_current_unusable().empty(); }

Layer::Layer(const LayerConfig& config, const LayerWeights& weights, const Placement& placement)
    : config_(config), device_(placement.device), back_end_(make_back_end(config, weights, placement)) {}

Layer::~Layer() = default;
Layer::Layer(Layer&&) noexcept = default;
Layer& Layer::operator=(Layer&&) noexcept = default;

size_t Layer::workspace_bytes(int32_t max_tokens) const { return back_end_->workspace_bytes(max_tokens); }

void Layer::run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const {
  back_end_->run(inputs, workspace, workspace_size, stream);
}

}  // namespace tessera::moe
