#include "tessera/moe/cuda_layer.h"

#include <cuda_runtime_api.h>

#include <string>

#include "cuda/kernels/combine/launch.h"
#include "cuda/kernels/expert_gemm/launch.h"
#include "cuda/kernels/moe_plan/launch.h"
#include "moe/cuda_workspace.h"
#include "moe/validation.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

namespace expert_gemm = kernels::expert_gemm;

constexpr BackEndTraits kTraits{"device memory", false};

expert_gemm::Role first_role(const LayerConfig& config) {
  return config.gated ? expert_gemm::Role::gate_up : expert_gemm::Role::up_only;
}

}  // namespace

CudaLayer::CudaLayer(const LayerConfig& config, const LayerWeights& weights, const LaunchPolicy& policy)
    : config_(config), weights_(weights), policy_(policy) {
  moe::validate(config, weights, kTraits);
  require_range("cluster_size", policy.cluster_size, 1, cta::kMaxClusterSize);
  require_range("back_every", policy.back_every, 0, INT32_MAX);
  if (policy.num_ctas != 0) require_range("num_ctas", policy.num_ctas, 1, INT32_MAX);
  if (policy.num_ctas == 1) policy_.cluster_size = 1;
}

size_t CudaLayer::workspace_bytes(int32_t max_tokens) const {
  validate_num_tokens(config_, max_tokens, "max_tokens");
  return lay_out_workspace(config_, max_tokens, nullptr).bytes;
}

void CudaLayer::validate(const LayerInputs& inputs, const void* workspace, size_t workspace_size) const {
  moe::validate(config_, inputs, workspace, workspace_size, workspace_bytes(inputs.num_tokens), kTraits);
}

void CudaLayer::run_step(Step step, const LayerInputs& inputs, void* workspace, size_t workspace_size,
                         CUstream_st* stream) const {
  validate(inputs, workspace, workspace_size);
  const CudaWorkspace arrays = lay_out_workspace(config_, inputs.num_tokens, workspace);
  const expert_gemm::Role role = first_role(config_);
  const expert_gemm::LaunchOptions options{policy_.num_ctas, policy_.cluster_size, policy_.back_every, true};
  const int32_t hidden = config_.hidden_size;
  const int32_t intermediate = config_.intermediate_size;
  switch (step) {
    case Step::plan:
      return kernels::moe_plan::launch({inputs.topk_ids,
                                        inputs.ids_are_64_bit,
                                        inputs.num_tokens,
                                        config_.top_k,
                                        config_.num_experts,
                                        config_.first_expert,
                                        policy_.order,
                                        {expert_gemm::tiling(role, intermediate, policy_.cluster_size),
                                         expert_gemm::tiling(expert_gemm::Role::down, hidden, policy_.cluster_size)},
                                        arrays.plan},
                                       stream);
    case Step::gate_up:
      return expert_gemm::launch({role, config_.dtype, arrays.plan, config_.num_experts,
                                  inputs.num_tokens * config_.top_k, inputs.num_tokens, hidden, intermediate, inputs.x,
                                  weights_.gate_up, weights_.gate_up_bias, arrays.intermediate, config_.activation},
                                 options, stream);
    case Step::down:
      return expert_gemm::launch({expert_gemm::Role::down,
                                  config_.dtype,
                                  arrays.plan,
                                  config_.num_experts,
                                  inputs.num_tokens * config_.top_k,
                                  inputs.num_tokens,
                                  intermediate,
                                  hidden,
                                  arrays.intermediate,
                                  weights_.down,
                                  weights_.down_bias,
                                  arrays.rows,
                                  {}},
                                 options, stream);
    case Step::combine:
      return kernels::combine::launch({config_.dtype, arrays.rows, arrays.plan.token_row, inputs.topk_weights,
                                       inputs.out, inputs.num_tokens, config_.top_k, hidden},
                                      stream);
  }
}

void CudaLayer::run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const {
  validate_num_tokens(config_, inputs.num_tokens);
  if (inputs.num_tokens == 0) return;
  for (const Step step : {Step::plan, Step::gate_up, Step::down, Step::combine})
    run_step(step, inputs, workspace, workspace_size, stream);
}

}  // namespace tessera::moe
