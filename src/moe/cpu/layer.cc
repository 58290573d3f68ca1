#include "tessera/moe/cpu_layer.h"

#include "moe/cpu/experts.h"
#include "moe/validation.h"
#include "tessera/core/thread_pool.h"

namespace tessera::moe {
namespace {

constexpr BackEndTraits kTraits{"host memory", true};

// Checked before anything is built from it.
const LayerConfig& checked(const LayerConfig& config, const LayerWeights& weights, int num_threads) {
  validate(config, weights, kTraits);
  require_range("num_threads", num_threads, 0, kMaxThreads);
  return config;
}

}  // namespace

CpuLayer::CpuLayer(const LayerConfig& config, const LayerWeights& weights, int num_threads)
    : config_(checked(config, weights, num_threads)),
      experts_(std::make_unique<CpuExperts>(config, weights, num_threads > 0 ? num_threads : available_processors())) {}

CpuLayer::~CpuLayer() = default;
CpuLayer::CpuLayer(CpuLayer&&) noexcept = default;
CpuLayer& CpuLayer::operator=(CpuLayer&&) noexcept = default;

int CpuLayer::num_threads() const { return experts_->num_threads(); }

size_t CpuLayer::workspace_bytes(int32_t max_tokens) const {
  validate_num_tokens(config_, max_tokens, "max_tokens");
  return experts_->lay_out(max_tokens, nullptr).bytes;
}

void CpuLayer::run(const LayerInputs& inputs, void* workspace, size_t workspace_size) const {
  validate_num_tokens(config_, inputs.num_tokens);
  if (inputs.num_tokens == 0) return;
  const size_t needed = workspace_bytes(inputs.num_tokens);
  validate(config_, inputs, workspace, workspace_size, needed, kTraits);
  require_apart(config_, experts_->weights(), inputs, workspace, needed);
  experts_->run(inputs, workspace);
}

}  // namespace tessera::moe
