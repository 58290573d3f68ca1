#include "moe/cuda/workspace.h"

#include "cuda/kernels/moe_plan/policy.h"
#include "moe/array_layout.h"
#include "moe/layer_layout.h"

namespace tessera::moe {
namespace {

constexpr size_t kArrayAlignment = 256;

}  // namespace

CudaWorkspace lay_out_workspace(const LayerConfig& config, int32_t num_tokens, void* base) {
  const int32_t num_experts = config.num_experts + num_shared_experts(config);
  const auto experts = static_cast<size_t>(num_experts);
  const auto pairs = static_cast<size_t>(num_tokens) * static_cast<size_t>(num_slots(config));
  const auto chunking =
      kernels::moe_plan::select_chunking(kernels::moe_plan::default_policy(), static_cast<int64_t>(pairs), num_experts);
  ArrayLayout layout(base, kArrayAlignment);
  CudaWorkspace workspace{};
  workspace.plan.header = layout.take<grouped::PlanHeader>(1);
  workspace.plan.expert_counts = layout.take<int32_t>(experts);
  workspace.plan.expert_offsets = layout.take<int32_t>(experts + 1);
  workspace.plan.row_token = layout.take<int32_t>(pairs);
  workspace.plan.token_row = layout.take<int32_t>(pairs);
  workspace.plan.task_order = layout.take<int32_t>(experts);
  for (int32_t*& tile_end : workspace.plan.tile_end) tile_end = layout.take<int32_t>(experts);
  workspace.plan.chunk_counts = layout.take<int32_t>(static_cast<size_t>(chunking.num_chunks) * experts);
  workspace.intermediate = layout.take<uint16_t>(pairs * static_cast<size_t>(config.intermediate_size));
  workspace.rows = layout.take<uint16_t>(pairs * static_cast<size_t>(config.hidden_size));
  workspace.bytes = layout.used();
  return workspace;
}

}  // namespace tessera::moe
