#include "tessera/moe/routing_plan.h"

#include <limits>

#include "tessera/batching/launch.h"
#include "tessera/core/check.h"

namespace tessera::moe {

std::vector<int32_t> RoutingPlan::tiles_per_expert(int32_t tile_rows) const {
  TESSERA_CHECK(tile_rows >= 1, tile_rows);
  std::vector<int32_t> tiles;
  tiles.reserve(expert_counts.size());
  for (const int32_t count : expert_counts) tiles.push_back(batching::ceil_div(count, tile_rows));
  return tiles;
}

namespace {

// A counting sort by expert: one pass counts, one places. Passing over tokens in order makes it stable.
template <class Id>
RoutingPlan build(std::span<const Id> topk_ids, int64_t num_tokens, int32_t top_k, int32_t num_experts) {
  TESSERA_CHECK(top_k >= 1 && top_k <= kMaxTopK, top_k);
  TESSERA_CHECK(num_experts >= 1 && num_experts <= kMaxExperts, num_experts);
  TESSERA_CHECK(num_tokens >= 0 && num_tokens <= std::numeric_limits<int32_t>::max() / top_k, num_tokens, top_k);
  TESSERA_CHECK(topk_ids.size() == static_cast<size_t>(num_tokens) * static_cast<size_t>(top_k), topk_ids.size(),
                num_tokens, top_k);
  const auto valid = [&](Id id) { return id >= 0 && id < static_cast<Id>(num_experts); };

  RoutingPlan plan;
  plan.num_tokens = static_cast<int32_t>(num_tokens);
  plan.top_k = top_k;
  plan.num_experts = num_experts;
  plan.expert_counts.assign(static_cast<size_t>(num_experts), 0);
  for (const Id id : topk_ids) {
    if (valid(id)) ++plan.expert_counts[static_cast<size_t>(id)];
  }
  plan.expert_offsets.assign(1, 0);
  for (const int32_t count : plan.expert_counts) {
    plan.expert_offsets.push_back(plan.expert_offsets.back() + count);
  }
  std::vector<int32_t> next_row(plan.expert_offsets.begin(), plan.expert_offsets.end() - 1);
  plan.row_token.resize(static_cast<size_t>(plan.expert_offsets.back()));
  plan.token_row.assign(topk_ids.size(), -1);
  for (size_t i = 0; i < topk_ids.size(); ++i) {
    if (!valid(topk_ids[i])) continue;
    const int32_t row = next_row[static_cast<size_t>(topk_ids[i])]++;
    plan.row_token[static_cast<size_t>(row)] = static_cast<int32_t>(i / static_cast<size_t>(top_k));
    plan.token_row[i] = row;
  }
  return plan;
}

}  // namespace

RoutingPlan build_routing_plan(std::span<const int32_t> topk_ids, int64_t num_tokens, int32_t top_k,
                               int32_t num_experts) {
  return build(topk_ids, num_tokens, top_k, num_experts);
}

RoutingPlan build_routing_plan(std::span<const int64_t> topk_ids, int64_t num_tokens, int32_t top_k,
                               int32_t num_experts) {
  return build(topk_ids, num_tokens, top_k, num_experts);
}

}  // namespace tessera::moe
