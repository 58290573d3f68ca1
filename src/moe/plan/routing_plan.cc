#include "tessera/moe/routing_plan.h"

#include <limits>

#include "moe/plan/arrays.h"
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

template <class Id>
RoutingPlan build(std::span<const Id> topk_ids, int64_t num_tokens, int32_t top_k, int32_t num_experts) {
  TESSERA_CHECK(top_k >= 1 && top_k <= kMaxTopK, top_k);
  TESSERA_CHECK(num_experts >= 1 && num_experts <= kMaxExperts, num_experts);
  TESSERA_CHECK(num_tokens >= 0 && num_tokens <= std::numeric_limits<int32_t>::max() / top_k, num_tokens, top_k);
  TESSERA_CHECK(topk_ids.size() == static_cast<size_t>(num_tokens) * static_cast<size_t>(top_k), topk_ids.size(),
                num_tokens, top_k);
  RoutingPlan plan;
  plan.num_tokens = static_cast<int32_t>(num_tokens);
  plan.top_k = top_k;
  plan.num_experts = num_experts;
  plan.expert_counts.resize(static_cast<size_t>(num_experts));
  plan.expert_offsets.resize(static_cast<size_t>(num_experts) + 1);
  plan.row_token.resize(topk_ids.size());
  plan.token_row.resize(topk_ids.size());
  const auto expert_of = [&](int64_t i) {
    const Id id = topk_ids[static_cast<size_t>(i)];
    return id >= 0 && id < static_cast<Id>(num_experts) ? static_cast<int32_t>(id) : -1;
  };
  fill_routing_plan(expert_of, top_k, {plan.expert_counts, plan.expert_offsets, plan.row_token, plan.token_row});
  plan.row_token.resize(static_cast<size_t>(plan.num_routed_rows()));
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
