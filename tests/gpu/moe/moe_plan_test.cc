// The device-built plan is bit-equal to the host-built one.
#include "cuda/kernels/expert_gemm/launch.h"
#include "cuda/kernels/moe_plan/launch.h"
#include "gpu/moe/gpu_fixture.h"
#include "tessera/batching/plan.h"
#include "tessera/moe/routing_plan.h"

namespace tessera::testing {
namespace {

using batching::TaskOrder;

struct PlanCase {
  int tokens, top_k, experts;
  const char* routing;
  TaskOrder order = TaskOrder::heavy_first;
  bool ids_are_64_bit = false;
  int cluster_size = 2;
};

void expect_equal(const PlanCase& c, const std::vector<int32_t>& ids, cudaStream_t stream = nullptr) {
  const moe::LayerConfig config{512, 384, c.experts, c.top_k, DType::bf16, true, {}, 0};
  const size_t bytes = moe::lay_out_workspace(config, c.tokens, nullptr).bytes;
  GuardedBuffer memory(bytes);
  const auto workspace = moe::lay_out_workspace(config, c.tokens, memory.data());
  GuardedBuffer device_ids(ids.size() * 8 + 8);
  c.ids_are_64_bit ? device_ids.upload(std::vector<int64_t>(ids.begin(), ids.end())) : device_ids.upload(ids);
  kernels::moe_plan::Args args{};
  args.topk_ids = device_ids.data();
  args.ids_are_64_bit = c.ids_are_64_bit;
  args.num_tokens = c.tokens;
  args.num_slots = c.top_k;
  args.num_experts = c.experts;
  args.order = c.order;
  args.tilings[0] = kernels::expert_gemm::tiling(grouped::Role::gate_up, 384, c.cluster_size);
  args.tilings[1] = kernels::expert_gemm::tiling(grouped::Role::down, 512, c.cluster_size);
  args.plan = workspace.plan;
  kernels::moe_plan::launch(args, stream);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  ASSERT_TRUE(memory.guards_intact());

  const auto host = moe::build_routing_plan(ids, c.tokens, c.top_k, c.experts);
  auto fetch = [](const int32_t* data, size_t count) {
    std::vector<int32_t> values(count);
    TESSERA_CUDA_CHECK(cudaMemcpy(values.data(), data, count * 4, cudaMemcpyDeviceToHost));
    return values;
  };
  grouped::PlanHeader header{};
  TESSERA_CUDA_CHECK(cudaMemcpy(&header, workspace.plan.header, sizeof header, cudaMemcpyDeviceToHost));
  const std::string name = str_cat("T ", c.tokens, " k ", c.top_k, " E ", c.experts, " ", c.routing);
  EXPECT_EQ(header.num_rows, host.num_routed_rows()) << name;
  EXPECT_EQ(fetch(workspace.plan.expert_counts, c.experts), host.expert_counts) << name;
  EXPECT_EQ(fetch(workspace.plan.expert_offsets, c.experts + 1), host.expert_offsets) << name;
  EXPECT_EQ(fetch(workspace.plan.row_token, host.row_token.size()), host.row_token) << name;
  EXPECT_EQ(fetch(workspace.plan.token_row, ids.size()), host.token_row) << name;
  const std::vector<double> cost(host.expert_counts.begin(), host.expert_counts.end());
  for (int gemm = 0; gemm < grouped::kNumGemms; ++gemm) {
    std::vector<int32_t> tiles;
    for (const int32_t rows : host.expert_counts) tiles.push_back(args.tilings[gemm].num_tiles(rows));
    const batching::BatchPlan batch(tiles, c.order, cost);
    const std::vector<int32_t> order(batch.task_order().begin(), batch.task_order().end());
    const std::vector<int32_t> ends(batch.prefix().tile_end, batch.prefix().tile_end + batch.prefix().num_tasks);
    EXPECT_EQ(header.num_tiles[gemm], batch.num_tiles()) << name;
    EXPECT_EQ(header.num_tasks, batch.prefix().num_tasks) << name;
    EXPECT_EQ(header.tile_tickets[gemm], 0u) << name;
    EXPECT_EQ(fetch(workspace.plan.task_order, order.size()), order) << name;
    EXPECT_EQ(fetch(workspace.plan.tile_end[gemm], ends.size()), ends) << name;
  }
}

void expect_equal(const PlanCase& c) { expect_equal(c, make_ids(c.routing, c.tokens, c.top_k, c.experts)); }

TEST(MoePlan, EveryNumberOfExperts) {
  for (const int experts :
       {1, 2, 3, 5, 6, 7, 8, 12, 60, 63, 64, 65, 128, 160, 192, 255, 256, 257, 384, 512, 1023, 1024}) {
    for (const char* routing : {"any", "worst", "foreign"})
      expect_equal({3000, std::min(4, experts), experts, routing});
  }
}

TEST(MoePlan, EveryTopK) {
  for (int top_k = 1; top_k <= 32; ++top_k) expect_equal({257, top_k, 64, "random"});
}

TEST(MoePlan, EveryNumberOfTokens) {
  for (int tokens = 0; tokens <= 300; ++tokens) expect_equal({tokens, 8, 37, "any"});
  for (const int tokens : {511, 512, 513, 1023, 1024, 1025, 4096, 16383, 32768})
    expect_equal({tokens, 8, 128, "random"});
}

TEST(MoePlan, RoutingsAndOrders) {
  for (const TaskOrder order : {TaskOrder::natural, TaskOrder::heavy_first, TaskOrder::interleaved}) {
    for (const char* routing : {"balanced", "best", "worst", "last", "zipf", "random", "foreign", "any"}) {
      expect_equal({2048, 4, 96, routing, order, true, 1});
      expect_equal({2048, 4, 96, routing, order, false, 2});
    }
  }
}

TEST(MoePlan, NoIdInRange) { expect_equal({100, 2, 8, "none"}, std::vector<int32_t>(200, -1)); }

TEST(MoePlan, ManyPairs) {
  expect_equal({262144, 8, 256, "random"});
  expect_equal({1 << 20, 8, 1024, "zipf"});
}

TEST(MoePlan, SixtyFourBitIdsBeyondThirtyTwo) {
  const PlanCase c{4, 1, 4, "given", TaskOrder::natural, true};
  const moe::LayerConfig config{512, 384, 4, 1, DType::bf16, true, {}, 0};
  GuardedBuffer memory(moe::lay_out_workspace(config, 4, nullptr).bytes);
  const auto workspace = moe::lay_out_workspace(config, 4, memory.data());
  GuardedBuffer ids(4 * 8);
  ids.upload(
      std::vector<int64_t>{int64_t{1} << 32, 1, -(int64_t{1} << 40), 3});  // the first would be expert 0 in 32 bits
  kernels::moe_plan::Args args{};
  args.topk_ids = ids.data();
  args.ids_are_64_bit = true;
  args.num_tokens = c.tokens;
  args.num_slots = c.top_k;
  args.num_experts = c.experts;
  args.tilings[0] = args.tilings[1] = {2, 3, 8, 128};
  args.plan = workspace.plan;
  kernels::moe_plan::launch(args, nullptr);
  std::vector<int32_t> token_row(4);
  TESSERA_CUDA_CHECK(cudaMemcpy(token_row.data(), workspace.plan.token_row, 16, cudaMemcpyDeviceToHost));
  EXPECT_EQ(token_row, (std::vector<int32_t>{-1, 0, -1, 1}));
}

}  // namespace
}  // namespace tessera::testing
