#include "moe/model/explain.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>

#include "cuda/kernels/expert_gemm/policy.h"
#include "tessera/core/error.h"
#include "tessera/moe/presets.h"

namespace tessera::moe {
namespace {

namespace expert_gemm = kernels::expert_gemm;
using grouped::Role;

Explanation explain(std::string_view preset_name, Routing routing, int64_t tokens, LaunchPolicy policy = {},
                    const DeviceRates& rates = {}) {
  const Preset& preset = find_preset(preset_name);
  const std::vector<int32_t> ids = make_topk_ids(preset, routing, tokens, 1);
  return explain_layer(preset.config, policy, count_rows(preset.config, ids), tokens, rates);
}

double sum_bytes(const GemmExplanation& gemm) {
  double bytes = 0.0;
  for (const ExplainedTile& tile : gemm.tiles) bytes += tile.cost.bytes;
  return bytes;
}

TEST(Explain, PartsAddUpToTheWork) {
  for (const char* name : {"qwen3-30b", "mixtral-8x7b", "gpt-oss-120b"}) {
    for (const int64_t tokens : {1, 100, 4096}) {
      const Preset& preset = find_preset(name);
      const Explanation plan = explain(name, Routing::random, tokens);
      const std::vector<int32_t> counts = count_rows(preset.config, make_topk_ids(preset, Routing::random, tokens, 1));
      const LayerWork work = count_work(preset.config, counts, tokens);
      EXPECT_EQ(work.num_rows, plan.num_rows);
      EXPECT_EQ(work.num_tasks, plan.num_tasks);
      EXPECT_DOUBLE_EQ(work.flops(), plan.gate_up.flops + plan.down.flops);
      EXPECT_DOUBLE_EQ(work.bytes(), plan.plan.bytes + plan.gate_up.bytes + plan.down.bytes + plan.combine.bytes);
    }
  }
}

TEST(Explain, WorkOfALayerThatNoGpuRuns) {
  const LayerConfig config{
      .hidden_size = 16, .intermediate_size = 8, .num_experts = 2, .top_k = 1, .dtype = DType::f32, .gated = false};
  const LayerWork work = count_work(config, std::vector<int32_t>{3, 0}, 4);
  EXPECT_EQ(work.flops(), 2.0 * 2 * 3 * 16 * 8);
  EXPECT_EQ(work.bytes(), 4.0 * (2 * 16 * 8 + 3 * 16 + 2 * 3 * 8 + (2 * 3 + 4) * 16 + 4 * 4 + 3));
}

// Weights, tokens and intermediate are bytes with scales each 128; the experts' rows and the output stay bf16.
TEST(Explain, WorkOfALayerInEightBits) {
  const LayerConfig config{.hidden_size = 272,
                           .intermediate_size = 144,
                           .num_experts = 2,
                           .top_k = 2,
                           .weight_format = WeightFormat::fp8_block};
  const LayerWork work = count_work(config, std::vector<int32_t>{3, 3}, 3);
  const double token = 272 + 4 * 3, intermediate = 144 + 4 * 2, matrix = 272 * 144 + 4 * 3 * 2;
  EXPECT_EQ(work.flops(), 6.0 * 6 * 272 * 144);
  EXPECT_EQ(work.plan.bytes, 2.0 * 4 * 3 * 2 + 4 * 6 + 3 * (2 * 272 + token));
  EXPECT_EQ(work.gate_up.bytes, 2 * 2 * matrix + 3 * token + 6 * intermediate);
  EXPECT_EQ(work.down.bytes, 2 * matrix + 6 * (intermediate + 2 * 272));
}

TEST(Explain, EightBitProductsAreTakenToBeTwiceAsFast) {
  Preset preset = find_preset("qwen3-30b");
  const std::vector<int32_t> counts = count_rows(preset.config, make_topk_ids(preset, Routing::balanced, 4096, 1));
  const Explanation wide = explain_layer(preset.config, {}, counts, 4096, {});
  preset.config.weight_format = WeightFormat::fp8_block;
  const Explanation narrow = explain_layer(preset.config, {}, counts, 4096, {});
  EXPECT_EQ(narrow.launch.kernel->name, "expert_gemm_fp8");
  EXPECT_DOUBLE_EQ(narrow.gate_up.flops_seconds, wide.gate_up.flops_seconds / 2);
  EXPECT_LT(narrow.gate_up.bytes_seconds, 0.6 * wide.gate_up.bytes_seconds);
  EXPECT_GT(narrow.plan.bytes, wide.plan.bytes);
}

TEST(Explain, FlopsAndBytesAreTheLayers) {
  const Explanation plan = explain("qwen3-30b", Routing::balanced, 4096);
  EXPECT_EQ(plan.num_rows, 32768);
  EXPECT_EQ(plan.num_tasks, 128);
  EXPECT_EQ(plan.fewest_rows, 256);
  EXPECT_EQ(plan.most_rows, 256);
  EXPECT_DOUBLE_EQ(plan.gate_up.flops, 4.0 * 32768 * 2048 * 768);
  EXPECT_DOUBLE_EQ(plan.down.flops, 2.0 * 32768 * 2048 * 768);
  EXPECT_DOUBLE_EQ(plan.gate_up.bytes, 2.0 * (128.0 * 2 * 768 * 2048 + 4096.0 * 2048 + 32768.0 * 768));
  EXPECT_DOUBLE_EQ(plan.down.bytes, 2.0 * (128.0 * 768 * 2048 + 32768.0 * 768 + 32768.0 * 2048));
  EXPECT_DOUBLE_EQ(plan.combine.bytes, 2.0 * (32768.0 + 4096) * 2048 + 8.0 * 32768);
  EXPECT_EQ(plan.launch.num_ctas, 132);
  EXPECT_EQ(plan.gate_up.num_lanes, 66);
}

TEST(Explain, EveryTileOfEveryExpertOnceWhateverTheOrder) {
  for (const auto order :
       {batching::TaskOrder::natural, batching::TaskOrder::heavy_first, batching::TaskOrder::interleaved}) {
    for (const int32_t cluster_size : {1, 2}) {
      const LaunchPolicy policy{order, 0, cluster_size, 6};
      const Preset& preset = find_preset("gpt-oss-20b");
      const std::vector<int32_t> counts = count_rows(preset.config, make_topk_ids(preset, Routing::zipf, 900, 1));
      const Explanation plan = explain_layer(preset.config, policy, counts, 900, {});
      for (const GemmExplanation* gemm : {&plan.gate_up, &plan.down}) {
        const bool first = gemm == &plan.gate_up;
        const auto tiling = first ? expert_gemm::tiling(Role::gate_up, preset.config.intermediate_size, cluster_size)
                                  : expert_gemm::tiling(Role::down, preset.config.hidden_size, cluster_size);
        std::set<std::pair<int32_t, int32_t>> tiles;
        for (const ExplainedTile& tile : gemm->tiles) {
          EXPECT_TRUE(tiles.emplace(tile.expert, tile.tile_idx).second);
          EXPECT_LT(tile.tile_idx, tiling.num_tiles(counts[static_cast<size_t>(tile.expert)]));
        }
        size_t expected = 0;
        for (const int32_t count : counts) expected += static_cast<size_t>(tiling.num_tiles(count));
        EXPECT_EQ(tiles.size(), expected);
        EXPECT_EQ(gemm->runs.size(), expected);
        EXPECT_NEAR(sum_bytes(*gemm), gemm->bytes, gemm->bytes * 1e-9);
        EXPECT_GE(gemm->computed_flops, gemm->flops);
      }
    }
  }
}

TEST(Explain, PredictionIsNotBelowTheFloor) {
  for (const Preset& preset : presets()) {
    for (const Routing routing : {Routing::balanced, Routing::best, Routing::worst, Routing::zipf, Routing::one}) {
      for (const int64_t tokens : {1, 64, 1000}) {
        if (routing == Routing::worst && tokens * preset.config.top_k < preset.num_global_experts) continue;
        SCOPED_TRACE(::testing::Message() << preset.name << " " << routing_name(routing) << " " << tokens);
        const Explanation plan = explain(preset.name, routing, tokens);
        for (const KernelWork* work : {&plan.plan, static_cast<const KernelWork*>(&plan.gate_up),
                                       static_cast<const KernelWork*>(&plan.down), &plan.combine}) {
          EXPECT_GE(work->predicted_seconds, work->floor_seconds() * (1 - 1e-6));
        }
        EXPECT_GE(plan.gate_up.idle(), -1e-6);
        EXPECT_LE(plan.gate_up.idle(), 1.0);
      }
    }
  }
}

TEST(Explain, OneCtaTakesTheSumOfItsTiles) {
  LaunchPolicy policy;
  policy.num_ctas = 1;
  const Explanation plan = explain("olmoe", Routing::random, 300, policy);
  EXPECT_EQ(plan.down.num_lanes, 1);
  const DeviceRates rates;
  double sum = 0.0;
  for (const ExplainedTile& tile : plan.down.tiles) {
    sum += seconds_alone(tile.cost, {1, rates.hbm_bytes_per_second, rates.cta_bytes_per_second, 0});
  }
  EXPECT_NEAR(plan.down.predicted_seconds, sum, sum * 1e-6);
  EXPECT_NEAR(plan.down.idle(), 0.0, 1e-6);
}

TEST(Explain, OrderMattersWhereLoadsDiffer) {
  // Qwen2-57B in its worst case: taking light experts beside heavy ones hides their weights behind products.
  const auto seconds = [](batching::TaskOrder order, int32_t back_every) {
    return explain("qwen2-57b", Routing::worst, 4096, {order, 0, 2, back_every}).gate_up.predicted_seconds;
  };
  EXPECT_LT(seconds(batching::TaskOrder::heavy_first, 6), seconds(batching::TaskOrder::heavy_first, 0));
  EXPECT_LT(seconds(batching::TaskOrder::interleaved, 0), seconds(batching::TaskOrder::heavy_first, 0));
}

TEST(Explain, OneTokenReadsOnlyItsExperts) {
  const Explanation plan = explain("mixtral-8x7b", Routing::best, 1);
  EXPECT_EQ(plan.num_tasks, 2);
  EXPECT_EQ(plan.fewest_rows, 0);
  EXPECT_TRUE(plan.gate_up.memory_binds());
  EXPECT_DOUBLE_EQ(plan.gate_up.padding(), 7.0 / 8);  // one row of 8
  EXPECT_FALSE(explain("mixtral-8x7b", Routing::balanced, 8192).gate_up.memory_binds());
}

TEST(Explain, NoTokensNoTiles) {
  const Explanation plan = explain("olmoe", Routing::balanced, 0);
  EXPECT_TRUE(plan.gate_up.tiles.empty());
  EXPECT_EQ(plan.gate_up.predicted_seconds, 0.0);
  EXPECT_EQ(plan.gate_up.idle(), 0.0);
}

TEST(Explain, AShardCountsItsOwnExperts) {
  const Preset& preset = find_preset("deepseek-v3-ep8");
  const std::vector<int32_t> ids = {96, 127, 95, 128, -1, 96};
  const std::vector<int32_t> counts = count_rows(preset.config, ids);
  EXPECT_EQ(counts.front(), 2);
  EXPECT_EQ(counts.back(), 1);
}

TEST(Explain, MoreCtasThanMultiprocessorsIsAnError) {
  LaunchPolicy policy;
  policy.num_ctas = 133;
  EXPECT_THROW(explain("olmoe", Routing::balanced, 8, policy), Error);
}

}  // namespace
}  // namespace tessera::moe
