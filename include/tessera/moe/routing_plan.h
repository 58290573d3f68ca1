// Who goes where in a mixture of experts: from the experts chosen for each token to rows grouped by expert.
//
//   topk_ids [T, k] = {{2, 0}, {2, 1}}            tokens 0 and 1, two slots each
//   expert_counts   = {1, 1, 2}                   expert_offsets = {0, 1, 2, 4}
//   row_token       = {0, 1, 0, 1}                row -> token: the token index array that a GEMM gathers by
//   token_row       = {{2, 0}, {3, 1}}            (token, slot) -> row, or -1 where the slot was skipped
//
// Rows of an expert are ordered by (token, slot), so that the plan, and every sum over it, is reproducible. A slot
// whose id lies outside [0, num_experts) is skipped (-1 is the usual mark of a slot that another rank serves); an id
// that occurs twice in a token counts twice. This is the host form and the definition; a device-built plan equals it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tessera/moe/limits.h"

namespace tessera::moe {

struct RoutingPlan {
  int32_t num_tokens = 0;
  int32_t top_k = 0;
  int32_t num_experts = 0;
  std::vector<int32_t> expert_counts;   ///< [num_experts]
  std::vector<int32_t> expert_offsets;  ///< [num_experts + 1], exclusive running totals
  std::vector<int32_t> row_token;       ///< [num_routed_rows]
  std::vector<int32_t> token_row;       ///< [num_tokens, top_k]

  int32_t num_routed_rows() const { return expert_offsets.empty() ? 0 : expert_offsets.back(); }
  /// Tiles of `tile_rows` rows (the last of an expert may be partial), per expert: the input of a BatchPlan.
  std::vector<int32_t> tiles_per_expert(int32_t tile_rows) const;
};

/// `topk_ids` is [num_tokens, top_k], of fewer than 2^31 entries; top_k lies in 1..kMaxTopK, num_experts in
/// 1..kMaxExperts (limits.h). num_tokens may be 0. Broken contracts throw ProgrammerError.
RoutingPlan build_routing_plan(std::span<const int32_t> topk_ids, int64_t num_tokens, int32_t top_k,
                               int32_t num_experts);
RoutingPlan build_routing_plan(std::span<const int64_t> topk_ids, int64_t num_tokens, int32_t top_k,
                               int32_t num_experts);

}  // namespace tessera::moe
