#include "moe/cuda/workspace.h"

#include "cuda/grouped/problem.h"
#include "cuda/kernels/moe_plan/policy.h"
#include "moe/formats.h"
#include "moe/layer_layout.h"
#include "tessera/core/e4m3.h"

namespace tessera::moe {

int32_t operand_bytes(const LayerConfig& config) { return format_row(config.weight_format).quantizes_rows() ? 1 : 2; }

grouped::PlanView take_plan(ArrayLayout& layout, int32_t num_experts, size_t pairs) {
  const auto experts = static_cast<size_t>(num_experts);
  const auto chunking =
      kernels::moe_plan::select_chunking(kernels::moe_plan::default_policy(), static_cast<int64_t>(pairs), num_experts);
  grouped::PlanView plan{};
  plan.header = layout.take<grouped::PlanHeader>(1);
  plan.expert_counts = layout.take<int32_t>(experts);
  plan.expert_offsets = layout.take<int32_t>(experts + 1);
  plan.row_token = layout.take<int32_t>(pairs);
  plan.token_row = layout.take<int32_t>(pairs);
  plan.task_order = layout.take<int32_t>(experts);
  for (int32_t*& tile_end : plan.tile_end) tile_end = layout.take<int32_t>(experts);
  plan.chunk_counts = layout.take<int32_t>(static_cast<size_t>(chunking.num_chunks) * experts);
  return plan;
}

CudaWorkspace lay_out_workspace(const LayerConfig& config, int32_t num_tokens, void* base, bool makes_plan) {
  const auto pairs = static_cast<size_t>(num_tokens) * static_cast<size_t>(num_slots(config));
  ArrayLayout layout(base, kWorkspaceAlignment);
  CudaWorkspace workspace{};
  workspace.plan = take_plan(layout, config.num_experts + num_shared_experts(config), pairs);
  const int32_t width = padded_intermediate_size(config);
  workspace.intermediate =
      layout.take<uint8_t>(pairs * static_cast<size_t>(width) * static_cast<size_t>(operand_bytes(config)));
  workspace.rows = layout.take<uint16_t>(pairs * static_cast<size_t>(config.hidden_size));
  if (format_row(config.weight_format).quantizes_rows()) {
    constexpr size_t kAlignment = grouped::kScaleAlignment;
    workspace.scale_stride =
        static_cast<int32_t>((pairs + grouped::kTileScales + kAlignment - 1) / kAlignment * kAlignment);
    const auto stride = static_cast<size_t>(workspace.scale_stride);
    workspace.token_codes = layout.take<uint8_t>(pairs * static_cast<size_t>(config.hidden_size));
    const auto intermediate_groups = static_cast<size_t>(scale_groups(width));
    workspace.token_scales = layout.take<float>(stride * static_cast<size_t>(scale_groups(config.hidden_size)));
    workspace.intermediate_scales = layout.take<float>(stride * intermediate_groups);
    if (makes_plan) {
      const size_t arrivals = pairs * intermediate_groups;
      workspace.activations = layout.take<float>(pairs * static_cast<size_t>(width));
      workspace.block_arrivals = layout.take<int32_t>(arrivals);
      workspace.num_block_arrivals = static_cast<int64_t>(arrivals);
    }
  }
  workspace.bytes = layout.used();
  return workspace;
}

}  // namespace tessera::moe
