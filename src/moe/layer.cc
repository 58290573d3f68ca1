#include "tessera/moe/layer.h"

#include <string>

#include "moe/cuda/entry.h"
#include "moe/validation.h"
#include "tessera/core/error.h"
#include "tessera/cuda/device.h"
#include "tessera/moe/cpu_layer.h"

namespace tessera::moe {
namespace {

std::unique_ptr<const LayerBackEnd> make_back_end(const LayerConfig& config, const LayerWeights& weights,
                                                  const Placement& placement) {
  if (placement.device == Device::cpu) return std::make_unique<CpuLayer>(config, weights, placement.num_threads);
  require_no_threads(placement.num_threads);
  if (const std::string why = cuda::why_current_unusable(); !why.empty())
    throw Error("device cuda", why, "a Hopper GPU and a build with CUDA, or device cpu");
  return make_cuda_layer(config, weights);
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
