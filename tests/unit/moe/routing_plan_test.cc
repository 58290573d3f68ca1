#include "tessera/moe/routing_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "tessera/batching/plan.h"
#include "tessera/core/check.h"
#include "unit/coverage.h"
#include "unit/exhaustive.h"

namespace tessera::moe {
namespace {

using batching::BatchPlan;
using batching::TaskOrder;

// "" if `plan` is exactly what the ids ask for: judged from the definition (every valid slot owns one row of its
// expert, rows of an expert in (token, slot) order), by sorting, which is not how the plan is built.
std::string routing_error(const RoutingPlan& plan, const std::vector<int32_t>& ids) {
  std::vector<std::pair<int32_t, int32_t>> wanted;  // (expert, position in ids)
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < plan.num_experts) wanted.emplace_back(ids[i], static_cast<int32_t>(i));
  }
  std::sort(wanted.begin(), wanted.end());
  if (plan.num_routed_rows() != static_cast<int32_t>(wanted.size())) return "wrong number of rows";
  if (plan.row_token.size() != wanted.size() || plan.token_row.size() != ids.size()) return "wrong array sizes";
  std::vector<int32_t> token_row(ids.size(), -1);
  for (size_t row = 0; row < wanted.size(); ++row) {
    const auto [expert, slot] = wanted[row];
    if (plan.row_token[row] != slot / plan.top_k) return str_cat("row ", row, " has the wrong token");
    const int32_t begin = plan.expert_offsets[static_cast<size_t>(expert)];
    const int32_t end = plan.expert_offsets[static_cast<size_t>(expert) + 1];
    if (static_cast<int32_t>(row) < begin || static_cast<int32_t>(row) >= end) return "row outside its expert";
    token_row[static_cast<size_t>(slot)] = static_cast<int32_t>(row);
  }
  if (token_row != plan.token_row) return "token_row is wrong";
  for (size_t expert = 0; expert < plan.expert_counts.size(); ++expert) {
    if (plan.expert_offsets[expert + 1] - plan.expert_offsets[expert] != plan.expert_counts[expert]) {
      return "counts and offsets differ";
    }
  }
  return "";
}

std::string tiling_error(const RoutingPlan& plan, int32_t tile_rows, TaskOrder order, int32_t num_ctas) {
  return testing::coverage_error(BatchPlan(plan.tiles_per_expert(tile_rows), order), plan.expert_counts, tile_rows,
                                 num_ctas);
}

TEST(RoutingPlan, EveryTop2RoutingOf5TokensOver4Experts) {
  const std::vector<std::pair<int32_t, int32_t>> pairs = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
  int num_routings = 0;
  for (int code = 0; code < 7776; ++code) {
    std::vector<int32_t> ids;
    for (int token = 0, rest = code; token < 5; ++token, rest /= 6) {
      const auto [first, second] = pairs[static_cast<size_t>(rest % 6)];
      // Odd codes list the pair the other way round: slots are ordered, experts are not.
      ids.push_back(code % 2 == 0 ? first : second);
      ids.push_back(code % 2 == 0 ? second : first);
    }
    const RoutingPlan plan = build_routing_plan(ids, 5, 2, 4);
    ASSERT_EQ(routing_error(plan, ids), "") << "routing " << code;
    for (const int32_t tile_rows : {1, 2, 4, 8}) {
      for (const TaskOrder order : {TaskOrder::natural, TaskOrder::heavy_first, TaskOrder::interleaved}) {
        ASSERT_EQ(tiling_error(plan, tile_rows, order, 3), "") << "routing " << code;
      }
    }
    ++num_routings;
  }
  EXPECT_EQ(num_routings, 7'776);
}

TEST(RoutingPlan, RandomPlans) {
  std::mt19937 random(20250116);
  const auto log_uniform = [&](double max) {
    return static_cast<int32_t>(std::exp(std::uniform_real_distribution<>(0, std::log(max + 1))(random)));
  };
  const int num_plans = 100'000 / testing::kExhaustiveDivisor;
  for (int trial = 0; trial < num_plans; ++trial) {
    const int32_t num_experts = std::min(512, log_uniform(512));
    const int32_t top_k = std::min(8, log_uniform(8));
    const int32_t num_tokens = std::min(8192, log_uniform(8192)) - 1;
    std::vector<int32_t> ids(static_cast<size_t>(num_tokens) * static_cast<size_t>(top_k));
    const int32_t spread = 1 + static_cast<int32_t>(random() % static_cast<uint32_t>(num_experts));
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(spread)) - (trial % 5 == 0);
    const RoutingPlan plan = build_routing_plan(ids, num_tokens, top_k, num_experts);
    ASSERT_EQ(routing_error(plan, ids), "") << "trial " << trial;
    const int32_t tile_rows = 1 << (trial % 8);
    const TaskOrder order = static_cast<TaskOrder>(trial % 3);
    ASSERT_EQ(tiling_error(plan, tile_rows, order, 1 + trial % 200), "") << "trial " << trial;
  }
}

// D2, D4, D9 of the public bugs: duplicates count per slot; ids outside the range never index anything.
TEST(RoutingPlan, DuplicateAndInvalidIds) {
  const std::vector<int32_t> ids = {2, 2, -1, 4, 7, 0, -2147483647 - 1, 2147483647};
  const RoutingPlan plan = build_routing_plan(ids, 4, 2, 4);
  EXPECT_EQ(plan.expert_counts, (std::vector<int32_t>{1, 0, 2, 0}));
  EXPECT_EQ(plan.row_token, (std::vector<int32_t>{2, 0, 0}));
  EXPECT_EQ(plan.token_row, (std::vector<int32_t>{1, 2, -1, -1, -1, 0, -1, -1}));
}

TEST(RoutingPlan, WideIdsAreNotTruncated) {
  const std::vector<int64_t> ids = {int64_t{1} << 32, 1, -(int64_t{1} << 32), 3};
  const RoutingPlan plan = build_routing_plan(ids, 4, 1, 4);
  EXPECT_EQ(plan.expert_counts, (std::vector<int32_t>{0, 1, 0, 1}));
}

// A4, A6, B1: no tokens; all tokens on the first, the last, one expert.
TEST(RoutingPlan, NoTokensAndOneExpertTakesAll) {
  const RoutingPlan none = build_routing_plan(std::span<const int32_t>{}, 0, 8, 64);
  EXPECT_EQ(none.num_routed_rows(), 0);
  EXPECT_EQ(BatchPlan(none.tiles_per_expert(128), TaskOrder::natural).num_tiles(), 0);
  for (const int32_t expert : {0, 31, 63}) {
    const std::vector<int32_t> ids(8192, expert);
    const RoutingPlan plan = build_routing_plan(ids, 8192, 1, 64);
    ASSERT_EQ(routing_error(plan, ids), "");
    ASSERT_EQ(tiling_error(plan, 128, TaskOrder::heavy_first, 132), "");
  }
}

// B3, B4, E7: every small number of tokens, awkward numbers of experts.
TEST(RoutingPlan, EveryTokenCountTo300AndAwkwardExpertCounts) {
  std::mt19937 random(3);
  for (const int32_t num_experts : {1, 2, 3, 5, 6, 7, 12, 60, 63, 64, 65, 160, 192, 255, 256, 257, 384, 512, 1024}) {
    for (int32_t num_tokens = 0; num_tokens <= 300; num_tokens += num_experts == 60 ? 1 : 43) {
      std::vector<int32_t> ids(static_cast<size_t>(num_tokens) * 4);
      for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(num_experts));
      ASSERT_EQ(routing_error(build_routing_plan(ids, num_tokens, 4, num_experts), ids), "");
    }
  }
}

TEST(RoutingPlan, TheJudgeFindsPlantedErrors) {
  const std::vector<int32_t> ids = {1, 0, 1, 2, 0, 2};
  const RoutingPlan good = build_routing_plan(ids, 3, 2, 3);
  ASSERT_EQ(routing_error(good, ids), "");
  RoutingPlan swapped_rows = good;
  std::swap(swapped_rows.row_token[0], swapped_rows.row_token[1]);
  EXPECT_NE(routing_error(swapped_rows, ids), "");
  RoutingPlan wrong_row = good;
  std::swap(wrong_row.token_row[0], wrong_row.token_row[2]);
  EXPECT_NE(routing_error(wrong_row, ids), "");
  RoutingPlan dropped = good;
  dropped.row_token.pop_back();
  EXPECT_NE(routing_error(dropped, ids), "");
  RoutingPlan moved = good;
  ++moved.expert_offsets[1];
  EXPECT_NE(routing_error(moved, ids), "");
}

TEST(RoutingPlan, BrokenContractsAreReported) {
  const std::vector<int32_t> ids = {0, 1};
  EXPECT_THROW(build_routing_plan(ids, 2, 2, 4), ProgrammerError);  // size does not match
  EXPECT_THROW(build_routing_plan(ids, 2, 0, 4), ProgrammerError);  // k = 0
  EXPECT_THROW(build_routing_plan(ids, 1, 2, 0), ProgrammerError);  // E = 0
  EXPECT_THROW(build_routing_plan(ids, 1, 2, 1025), ProgrammerError);
  EXPECT_THROW(build_routing_plan(ids, -1, 2, 4), ProgrammerError);
  EXPECT_THROW(build_routing_plan(ids, 1, 2, 4).tiles_per_expert(0), ProgrammerError);
}

}  // namespace
}  // namespace tessera::moe
