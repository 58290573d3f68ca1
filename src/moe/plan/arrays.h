// The routing plan in memory of the caller: what RoutingPlan owns, without an allocation.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

namespace tessera::moe {

/// See RoutingPlan for what they hold.
struct RoutingPlanArrays {
  std::span<int32_t> expert_counts;   ///< [num_experts]
  std::span<int32_t> expert_offsets;  ///< [num_experts + 1]
  std::span<int32_t> row_token;       ///< at least the routed rows, [num_tokens * top_k] is always enough
  std::span<int32_t> token_row;       ///< [num_tokens, top_k]
};

/// `expert_of(i)` is the expert of (token, slot) pair i, or -1 for a slot that is skipped. A counting sort by expert:
/// one pass counts, one places; passing over the tokens in order makes it stable.
template <class ExpertOf>
void fill_routing_plan(const ExpertOf& expert_of, int32_t top_k, const RoutingPlanArrays& plan) {
  const int64_t num_pairs = static_cast<int64_t>(plan.token_row.size());
  std::fill(plan.expert_counts.begin(), plan.expert_counts.end(), 0);
  for (int64_t i = 0; i < num_pairs; ++i) {
    const int32_t expert = expert_of(i);
    if (expert >= 0) ++plan.expert_counts[static_cast<size_t>(expert)];
  }
  // expert_offsets[e + 1] is first the place of expert e's next row, and has become its end when all are placed.
  plan.expert_offsets[0] = 0;
  int32_t total = 0;
  for (size_t e = 0; e < plan.expert_counts.size(); ++e) {
    plan.expert_offsets[e + 1] = total;
    total += plan.expert_counts[e];
  }
  for (int64_t i = 0; i < num_pairs; ++i) {
    const int32_t expert = expert_of(i);
    int32_t row = -1;
    if (expert >= 0) {
      row = plan.expert_offsets[static_cast<size_t>(expert) + 1]++;
      plan.row_token[static_cast<size_t>(row)] = static_cast<int32_t>(i / top_k);
    }
    plan.token_row[static_cast<size_t>(i)] = row;
  }
}

}  // namespace tessera::moe
