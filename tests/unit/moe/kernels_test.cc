#include "moe/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "moe/formats.h"
#include "tessera/core/error.h"
#include "tessera/moe/presets.h"
#include "unit/error_message.h"

namespace tessera::moe {
namespace {

using testing::error_of;

using grouped::Role;

const LayerConfig& layer() { return find_preset("qwen3-30b").config; }

constexpr LaunchDevice kDevice{132, true};

TEST(Kernels, RowsAgreeWithTheirTilings) {
  std::set<std::string_view> names;
  std::set<WeightFormat> formats;
  for (const KernelRow& row : kernel_rows()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_FALSE(row.why.empty());
    formats.insert(row.format);
    for (const Role role : {Role::gate_up, Role::up_only, Role::down}) {
      for (const int32_t cluster_size : {1, 2}) {
        const grouped::Tiling tiling = row.tiling(role, 777, cluster_size);
        EXPECT_EQ(tiling.tile_rows, row.tile_rows) << row.name;
        EXPECT_EQ(tiling.cluster_size, row.makes_plan ? 1 : cluster_size);
        const int32_t out_columns = row.tile_columns_and_k(role, cluster_size).first / (role == Role::gate_up ? 2 : 1);
        EXPECT_EQ(tiling.num_n_blocks, (777 + out_columns - 1) / out_columns);
        EXPECT_NE(row.policy(role, cluster_size), "");
      }
    }
  }
  for (const FormatRow& format : format_rows()) EXPECT_TRUE(formats.contains(format.format)) << format.name;
}

TEST(Kernels, TheLaunchIsWhatTheDeviceCanDo) {
  const ResolvedLaunch whole = resolve_launch(layer(), 4096, kDevice, {});
  EXPECT_EQ(whole.kernel->name, "expert_gemm");
  EXPECT_EQ(whole.num_ctas, 132);
  EXPECT_EQ(whole.cluster_size, 2);
  EXPECT_EQ(whole.back_every, LaunchPolicy{}.back_every);
  EXPECT_EQ(whole.tiling(Role::down, 512).cluster_size, 2);
  EXPECT_EQ(whole.tiling(Role::down, 512).num_n_blocks, whole.kernel->tiling(Role::down, 512, 2).num_n_blocks);
  LaunchPolicy wish;
  wish.num_ctas = 1;
  EXPECT_EQ(resolve_launch(layer(), 4096, kDevice, wish).cluster_size, 1) << "a lone CTA has no partner";
  wish.num_ctas = 2;
  EXPECT_EQ(resolve_launch(layer(), 4096, kDevice, wish).cluster_size, 2);
  EXPECT_EQ(resolve_launch(layer(), 4096, {132, false}, wish).cluster_size, 1) << "pairs do not fit";
  wish = {};
  wish.cluster_size = 1;
  EXPECT_EQ(resolve_launch(layer(), 4096, kDevice, wish).cluster_size, 1);
}

TEST(Kernels, ASmallBatchTakesTheKernelOfFewRows) {
  const ResolvedLaunch small = resolve_launch(layer(), 1, kDevice, {});
  EXPECT_EQ(small.kernel->name, "expert_gemm_rows");
  EXPECT_EQ(small.num_ctas, 264);
  EXPECT_EQ(small.cluster_size, 1);
  EXPECT_EQ(small.back_every, 0);
  LaunchPolicy wish;
  wish.num_ctas = 7;
  EXPECT_EQ(resolve_launch(layer(), 1, kDevice, wish).num_ctas, 7);
  wish.num_ctas = INT32_MAX;
  EXPECT_EQ(resolve_launch(layer(), 1, kDevice, wish).num_ctas, 264) << "no more than are resident together";
}

// 128 experts, 8 of them a token: on average a sixteenth of the tokens each.
TEST(Kernels, TheChoiceIsByTheMeanNumberOfRows) {
  const auto name = [](const LayerConfig& config, int32_t tokens) {
    return resolve_launch(config, tokens, kDevice, {}).kernel->name;
  };
  EXPECT_EQ(name(layer(), 128), "expert_gemm_rows");
  EXPECT_EQ(name(layer(), 129), "expert_gemm");
  const LayerConfig& wide = find_preset("mixtral-8x7b").config;  // a quarter of the tokens each
  EXPECT_EQ(name(wide, 32), "expert_gemm_rows");
  EXPECT_EQ(name(wide, 33), "expert_gemm");
  LayerConfig one = layer();
  one.num_experts = one.top_k = 1;
  EXPECT_EQ(name(one, 16), "expert_gemm_rows") << "so few tokens whatever the layer";
  EXPECT_EQ(name(one, 17), "expert_gemm");
}

TEST(Kernels, AWishGoesBeforeSpeedButNotBeforeWhatCanRun) {
  LaunchPolicy wish;
  wish.kernel = "expert_gemm";
  EXPECT_EQ(resolve_launch(layer(), 1, kDevice, wish).kernel->name, "expert_gemm");
  wish.kernel = "expert_gemm_rows";
  EXPECT_EQ(resolve_launch(layer(), 1024, kDevice, wish).kernel->name, "expert_gemm_rows");  // 8192 pairs
  EXPECT_NE(error_of([&] { resolve_launch(layer(), 1025, kDevice, wish); }).find("more (token, slot) pairs than"),
            std::string::npos);
  LayerConfig wide = layer();
  wide.hidden_size = 64 * 1024;
  EXPECT_EQ(resolve_launch(wide, 1, kDevice, {}).kernel->name, "expert_gemm_rows");
  wide.hidden_size += 8;
  EXPECT_EQ(resolve_launch(wide, 1, kDevice, {}).kernel->name, "expert_gemm");
}

TEST(Kernels, WishesThatNoDeviceCanFollowAreNamed) {
  const auto resolve = [](const LaunchPolicy& wish) {
    return error_of([&] { resolve_launch(layer(), 1, kDevice, wish); });
  };
  LaunchPolicy wish;
  wish.cluster_size = 3;
  EXPECT_EQ(resolve(wish), "cluster_size: got 3, expected 1..2");
  wish = {};
  wish.num_ctas = -1;
  EXPECT_EQ(resolve(wish).find("num_ctas: got -1"), 0u);
  wish = {};
  wish.back_every = -1;
  EXPECT_EQ(resolve(wish).find("back_every: got -1"), 0u);
  wish = {};
  wish.kernel = "fastest";
  EXPECT_EQ(
      resolve(wish),
      "kernel: got 'fastest', expected a kernel that can run it (expert_gemm_rows: another kernel was asked for; "
      "expert_gemm: another kernel was asked for; expert_gemm_rows_fp8: another kernel was asked for; "
      "expert_gemm_fp8: another kernel was asked for; expert_gemm_rows_fp8_channel: another kernel was asked for; "
      "expert_gemm_fp8_channel: another kernel was asked for)");
  wish.kernel = "expert_gemm";
  EXPECT_EQ(resolve(wish), "no error");
}

TEST(Kernels, ALayerThatNoKernelRunsIsRefusedWithEveryReason) {
  LayerConfig config = layer();
  config.dtype = DType::f32;
  EXPECT_EQ(
      error_of([&] { select_kernel(config, 1, kDevice); }),
      "kernel: got no kernel for this layer, expected a kernel that can run it (expert_gemm_rows: its products are "
      "of bf16 or f16; expert_gemm: its products are of bf16 or f16; expert_gemm_rows_fp8: its weights have another "
      "format; expert_gemm_fp8: its weights have another format; expert_gemm_rows_fp8_channel: its weights have "
      "another "
      "format; expert_gemm_fp8_channel: its weights have another format)");
}

TEST(Kernels, WeightsInBlocksOfE4m3TakeTheirOwn) {
  LayerConfig config = layer();
  config.weight_format = WeightFormat::fp8_block;
  for (const int32_t tokens : {1, 32})
    EXPECT_EQ(resolve_launch(config, tokens, kDevice, {}).kernel->name, "expert_gemm_rows_fp8");
  EXPECT_EQ(resolve_launch(config, 4096, kDevice, {}).kernel->name, "expert_gemm_fp8");
  config.dtype = DType::f32;
  EXPECT_NE(error_of([&] { select_kernel(config, 1, kDevice); }).find("expert_gemm_fp8: its products are of bf16"),
            std::string::npos);
  config.dtype = DType::bf16;
  config.intermediate_size = 192;
  config.shared_intermediate_size = 192;
  EXPECT_EQ(resolve_launch(config, 1, kDevice, {}).kernel->name, "expert_gemm_rows_fp8")
      << "one slice begins with the scales";
  config.shared_intermediate_size = 384;
  EXPECT_NE(error_of([&] { select_kernel(config, 1, kDevice); }).find("cut inside a block of scales"),
            std::string::npos);
  config.shared_intermediate_size = 0;
  for (const ScaleOffsets offsets : {ScaleOffsets{64, 0, 0}, {0, 64, 0}, {0, 0, 16}, {64, 64, 16}}) {
    config.scale_offsets = offsets;
    EXPECT_NE(error_of([&] { select_kernel(config, 1, kDevice); }).find("gate, up and down at different places"),
              std::string::npos);
  }
  config.scale_offsets = {8, 8, 8};
  EXPECT_NE(error_of([&] { select_kernel(config, 1, kDevice); }).find("at no multiple of 16"), std::string::npos);
  config.scale_offsets = {96, 96, 96};
  EXPECT_EQ(resolve_launch(config, 1, kDevice, {}).kernel->name, "expert_gemm_fp8") << "a shard like any other";
  config.shared_intermediate_size = 192;
  EXPECT_NE(error_of([&] { select_kernel(config, 1, kDevice); }).find("its shared expert do not"), std::string::npos);
}

TEST(Kernels, TheChoiceAndTheLaunchAreSaid) {
  const KernelChoice choice = select_kernel(layer(), 4096, kDevice);
  EXPECT_EQ(choice.row->name, "expert_gemm");
  EXPECT_EQ(choice.refused.size() + 1, kernel_rows().size());
  const auto lines = describe_choice(choice);
  EXPECT_EQ(lines.size(), kernel_rows().size());
  EXPECT_EQ(lines.front().find("expert_gemm, chosen: "), 0u);
  const auto launch = describe_launch(layer(), resolve_launch(layer(), 4096, kDevice, {}));
  ASSERT_EQ(launch.size(), 5u);
  EXPECT_NE(launch[1].second.find("tile 128x256x64"), std::string::npos);
  EXPECT_NE(launch[1].second.find("3 gather warps"), std::string::npos);
  EXPECT_NE(launch[2].second.find("0 gather warps"), std::string::npos);
  EXPECT_EQ(launch[4].second, "heavy-first over 132 CTAs in clusters of 2; 1 of every 6 clusters from the back");
  const auto small = describe_launch(layer(), resolve_launch(layer(), 1, kDevice, {}));
  EXPECT_EQ(small[0].second, "by each CTA of the products for itself");
  EXPECT_NE(small[1].second.find("units of at most 64 weight rows x 64 rows"), std::string::npos);
  EXPECT_EQ(small[4].second, "natural over 264 CTAs");
}

}  // namespace
}  // namespace tessera::moe
