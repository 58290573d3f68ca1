// The kernel for few rows an expert: the bits of the format's large kernel in every case, whatever the grid, the
// workspace's contents, the routing of a replay, or what runs beside and before it.
#include <algorithm>

#include "cuda/core/stream.h"
#include "gpu/captured_graph.h"
#include "gpu/moe/gpu_fixture.h"
#include "gpu/moe/late_ids.h"
#include "moe/battery.h"
#include "moe/kernels.h"
#include "unit/moe/exact_case.h"

namespace tessera::testing {
namespace {

moe::LaunchPolicy by_kernel(const char* kernel, int32_t num_ctas = 0) {
  moe::LaunchPolicy policy;
  policy.kernel = kernel;
  policy.num_ctas = num_ctas;
  return policy;
}

// Each weight format's two kernels.
struct Kernels {
  const char* name;
  moe::WeightFormat format;
  const char* large;
  const char* rows;
  size_t least_cases;  // of the battery
};

class ExpertGemmRows : public ::testing::TestWithParam<Kernels> {
 protected:
  moe::LaunchPolicy large() const { return by_kernel(GetParam().large); }
  moe::LaunchPolicy rows(int32_t num_ctas = 0) const { return by_kernel(GetParam().rows, num_ctas); }

  // The case in this format; widths that it does not take are made the next that it does.
  LayerCase of_format(LayerCase c) const {
    c.format = GetParam().format;
    if (c.format == moe::WeightFormat::dense) return c;
    c.hidden = (c.hidden + 15) / 16 * 16;
    c.intermediate = (c.intermediate + 15) / 16 * 16;
    if (c.shared_intermediate > 0) c.shared_intermediate = c.intermediate;  // a slice begins where a block does
    return c;
  }

  void expect_bits_of_large(std::vector<LayerCase> cases) const {
    for (LayerCase& c : cases) c = of_format(c);
    for (const std::string& line : differing_cases(cases, large(), rows())) ADD_FAILURE() << line;
  }
};

INSTANTIATE_TEST_SUITE_P(
    Formats, ExpertGemmRows,
    ::testing::Values(Kernels{"dense", moe::WeightFormat::dense, "expert_gemm", "expert_gemm_rows", 200},
                      Kernels{"fp8_block", moe::WeightFormat::fp8_block, "expert_gemm_fp8", "expert_gemm_rows_fp8", 8},
                      Kernels{"fp8_channel", moe::WeightFormat::fp8_channel, "expert_gemm_fp8_channel",
                              "expert_gemm_rows_fp8_channel", 8}),
    [](const auto& kernels) { return kernels.param.name; });

TEST_P(ExpertGemmRows, BitsOfTheLargeKernelOverTheBattery) {
  std::vector<LayerCase> cases = battery_of(runs_on_gpu);
  std::erase_if(cases, [&](const LayerCase& c) {
    if (c.format != GetParam().format) return true;
    for (const moe::KernelRow& row : moe::kernel_rows())
      if (row.name == GetParam().rows) return row.misfit(config_of(c), c.tokens, {}) != nullptr;
    return true;
  });
  EXPECT_GE(cases.size(), GetParam().least_cases);
  expect_bits_of_large(cases);
}

// Every number of tokens around the borders of a group of columns, of the warp's plan and of a pass; with one expert
// for all, an expert has as many rows as there are tokens, so that passes begin at 65, 129, ...
TEST_P(ExpertGemmRows, BitsOfTheLargeKernelForEveryNumberOfTokens) {
  for (const char* routing : {"random", "first", "few"}) {
    std::vector<LayerCase> cases;
    for (int32_t tokens = 0; tokens <= 300; ++tokens) cases.push_back({104, 72, 5, 2, tokens, routing});
    expect_bits_of_large(cases);
  }
}

TEST_P(ExpertGemmRows, WidthsAroundASlabAndAStep) {
  std::vector<LayerCase> cases;
  for (const int32_t width : {8, 16, 24, 56, 64, 72, 96, 120, 136, 192, 352, 704, 1408, 2880}) {
    for (const bool gated : {true, false}) {
      cases.push_back({.hidden = width, .intermediate = 200, .experts = 6, .top_k = 3, .tokens = 9, .gated = gated});
      cases.push_back({.hidden = 200, .intermediate = width, .experts = 6, .top_k = 3, .tokens = 9, .gated = gated});
    }
  }
  expect_bits_of_large(cases);
}

// Few tokens' e4m3 rows are quantised where they are read, by groups of lanes that share out the steps of all units of
// a CTA: steps a unit above and below the number of groups, one CTA with all units, rings that are shorter than the
// groups.
TEST_P(ExpertGemmRows, FewTokensOfEveryLengthAndGrid) {
  std::vector<LayerCase> cases;
  for (const int32_t tokens : {1, 2, 4}) {
    for (const int32_t hidden : {128, 384, 1536})
      cases.push_back({.hidden = hidden, .intermediate = 144, .experts = 4, .top_k = 3, .tokens = tokens});
    cases.push_back(
        {.hidden = 272, .intermediate = 1680, .experts = 1, .top_k = 12, .tokens = tokens, .routing = "first"});
  }
  cases.push_back({.hidden = 4096, .intermediate = 80, .experts = 3, .top_k = 2, .tokens = 1});
  cases.push_back({.hidden = 512, .intermediate = 512, .experts = 1, .top_k = 32, .tokens = 2, .routing = "first"});
  expect_bits_of_large(cases);
  for (LayerCase& c : cases) c = of_format(c);
  for (const int32_t num_ctas : {1, 3, 67}) {
    for (const std::string& line : differing_cases(cases, rows(), rows(num_ctas)))
      ADD_FAILURE() << num_ctas << " CTAs: " << line;
  }
}

// Units are cut by the number of CTAs, and a CTA may have none.
TEST_P(ExpertGemmRows, SameBitsForEveryGrid) {
  std::vector<LayerCase> cases = {{512, 384, 16, 4, 1}, {512, 384, 16, 4, 40}, {200, 136, 60, 6, 33, "zipf"}};
  for (LayerCase& c : cases) c = of_format(c);
  for (const int32_t num_ctas : {1, 2, 7, 66, 131, 132, 263}) {
    for (const std::string& line : differing_cases(cases, rows(), rows(num_ctas)))
      ADD_FAILURE() << num_ctas << " CTAs: " << line;
  }
}

TEST_P(ExpertGemmRows, MostExpertsSlotsAndPairs) {
  const std::vector<LayerCase> cases = {
      {.hidden = 64, .intermediate = 64, .experts = 1024, .top_k = 32, .tokens = 256},  // 8192 pairs
      {.hidden = 64, .intermediate = 64, .experts = 1024, .top_k = 32, .tokens = 1},
      {.hidden = 64, .intermediate = 64, .experts = 1, .top_k = 1, .tokens = 8192},
      {.hidden = 64, .intermediate = 64, .experts = 1, .top_k = 32, .tokens = 256, .routing = "first"}};
  expect_bits_of_large(cases);
}

// Every role, type, plan and group of columns once, small enough for the sanitizers.
class ExpertGemmRowsSmall : public ExpertGemmRows {};
INSTANTIATE_TEST_SUITE_P(
    Formats, ExpertGemmRowsSmall,
    ::testing::Values(Kernels{"dense", moe::WeightFormat::dense, "expert_gemm", "expert_gemm_rows", 0},
                      Kernels{"fp8_block", moe::WeightFormat::fp8_block, "expert_gemm_fp8", "expert_gemm_rows_fp8", 0},
                      Kernels{"fp8_channel", moe::WeightFormat::fp8_channel, "expert_gemm_fp8_channel",
                              "expert_gemm_rows_fp8_channel", 0}),
    [](const auto& kernels) { return kernels.param.name; });

TEST_P(ExpertGemmRowsSmall, EveryPathOnce) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const bool gated : {true, false}) {
      for (const int32_t tokens : {1, 12, 20, 40, 70}) {
        const LayerCase c{.hidden = 136,
                          .intermediate = 72,
                          .experts = 3,
                          .top_k = 2,
                          .tokens = tokens,
                          .routing = tokens > 40 ? "first" : "random",
                          .dtype = dtype,
                          .gated = gated,
                          .bias = gated,
                          .shared_intermediate = tokens == 12 ? 144 : 0};
        expect_bits_of_large({c});
      }
    }
  }
}

// A row's bits do not depend on what else is in the batch, across the border between the kernels too.
TEST_P(ExpertGemmRows, RowsOfABatchAreThoseOfSmallerOnes) {
  const LayerCase all = of_format({512, 192, 16, 4, 600});
  LayerRun run((LayerData(all)));
  const auto expected = run.run();
  for (const int32_t tokens : {1, 2, 8, 16, 17, 31, 32, 33, 64, 65, 128, 129, 256, 300, 599}) {
    moe::LayerInputs inputs = run.inputs();
    inputs.num_tokens = tokens;
    const moe::CudaLayer layer(run.config(), run.weights());
    GuardedBuffer workspace(layer.workspace_bytes(tokens));
    run.out().poison();
    layer.run(inputs, workspace.data(), workspace.bytes(), nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    auto head = expected;
    head.resize(static_cast<size_t>(tokens) * 512);
    EXPECT_TRUE(run.out().download<uint16_t>(head.size()) == head) << tokens << " tokens";
  }
}

// Nothing of an earlier run may be read: not the rows of another routing, not the places of pairs.
TEST_P(ExpertGemmRows, TenThousandReplaysWithChangingRouting) {
  const LayerCase c = of_format({256, 192, 32, 4, 12});
  constexpr int kRoutings = 25;
  constexpr int kReplays = 10'000;
  LayerRun run((LayerData(c)));
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<uint16_t>> expected;
  for (int i = 0; i < kRoutings; ++i) {
    const char* const kinds[] = {"random", "foreign", "first", "few", "none"};
    ids.push_back(make_ids(kinds[i % 5], c.tokens, c.top_k, c.experts, static_cast<uint64_t>(i)));
    run.set_ids(ids.back());
    expected.push_back(run.run(large()));
  }
  std::vector<GuardedBuffer> device_ids;
  for (const std::vector<int32_t>& routing : ids) {
    device_ids.emplace_back(routing.size() * sizeof(int32_t));
    device_ids.back().upload(routing);
  }
  const moe::CudaLayer layer(run.config(), run.weights(), rows());
  GuardedBuffer workspace(layer.workspace_bytes(c.tokens));
  workspace.poison();
  const cuda::Stream owned(cudaStreamNonBlocking);
  cudaStream_t stream = owned.get();
  const CapturedGraph graph(stream, [&] { layer.run(run.inputs(), workspace.data(), workspace.bytes(), stream); });
  const moe::LayerInputs inputs = run.inputs();
  std::string wrong;
  for (int replay = 0; replay < kReplays; ++replay) {
    const auto routing = static_cast<size_t>(replay * 7 % kRoutings);
    TESSERA_CUDA_CHECK(cudaMemcpyAsync(const_cast<void*>(inputs.topk_ids), device_ids[routing].data(),
                                       ids[routing].size() * sizeof(int32_t), cudaMemcpyDeviceToDevice, stream));
    graph.replay(stream);
    // The copy back costs more than the layer. 21, which has no factor of kRoutings: each routing is looked at.
    if (replay % 21 != 0 && replay < kReplays - kRoutings) continue;
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream));
    const std::string difference =
        difference_of("out", run.out().download<uint16_t>(expected[routing].size()), expected[routing], c.hidden);
    if (!difference.empty()) wrong += str_cat("replay ", replay, ", routing ", routing, ": ", difference, "\n");
  }
  EXPECT_EQ(wrong, "");
  EXPECT_TRUE(workspace.guards_intact());
}

// Two small layers fill a multiprocessor between them; neither may wait for the other.
TEST_P(ExpertGemmRows, TwoStreamsAtOnce) {
  const LayerCase cases[] = {of_format({2048, 256, 64, 8, 4}), of_format({1024, 512, 32, 4, 30})};
  std::vector<LayerRun> runs;
  std::vector<moe::CudaLayer> layers;
  std::vector<GuardedBuffer> workspaces;
  std::vector<std::vector<uint16_t>> expected;
  for (const LayerCase& c : cases) {
    runs.emplace_back(LayerData(c));
    expected.push_back(runs.back().run(large()));
    layers.emplace_back(runs.back().config(), runs.back().weights(), rows());
    workspaces.emplace_back(layers.back().workspace_bytes(c.tokens));
  }
  const cuda::Stream streams[] = {cuda::Stream(cudaStreamNonBlocking), cuda::Stream(cudaStreamNonBlocking)};
  for (int round = 0; round < 50; ++round) {
    for (LayerRun& run : runs) run.out().poison();
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    for (int n = 0; n < 20; ++n) {
      for (size_t i = 0; i < runs.size(); ++i)
        layers[i].run(runs[i].inputs(), workspaces[i].data(), workspaces[i].bytes(), streams[i].get());
    }
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    for (size_t i = 0; i < runs.size(); ++i)
      ASSERT_TRUE(runs[i].out().download<uint16_t>(expected[i].size()) == expected[i]) << "layer " << i;
  }
}

// A kernel before the layer lets it begin early and writes ids, tokens and weights of the slots late: only the layer's
// own wait keeps it from reading what was there before.
TEST_P(ExpertGemmRows, InputsThatAreWrittenLate) {
  for (const int32_t tokens : {1, 5, 40}) {
    const LayerCase c = of_format({512, 192, 16, 4, tokens});
    LayerRun run((LayerData(c)));
    const auto expected = run.run(large());
    const std::vector<int32_t> ids = run.host_ids();
    GuardedBuffer late(ids.size() * sizeof(int32_t));
    late.upload(ids);
    const moe::CudaLayer layer(run.config(), run.weights(), rows());
    GuardedBuffer workspace(layer.workspace_bytes(tokens));
    const cuda::Stream owned(cudaStreamNonBlocking);
    for (int round = 0; round < 20; ++round) {
      run.out().poison();
      workspace.poison();
      run.set_ids(make_ids("random", tokens, 4, 16, static_cast<uint64_t>(round) + 100));
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
      copy_late(late.data(), const_cast<void*>(run.inputs().topk_ids), static_cast<int32_t>(ids.size()), 20'000,
                owned.get());
      layer.run(run.inputs(), workspace.data(), workspace.bytes(), owned.get());
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
      ASSERT_TRUE(run.out().download<uint16_t>(expected.size()) == expected) << tokens << " tokens, round " << round;
    }
  }
}

// What the comparisons above would not miss: a lost column of a product, a row of the slot's neighbour, a unit that was
// not computed (its place keeps what the memory held).
TEST_P(ExpertGemmRows, PlantedErrorsAreSeen) {
  const LayerCase c = of_format({256, 192, 8, 2, 40});
  LayerRun run((LayerData(c)));
  const auto expected = run.run(large());
  const auto differs = [&](const auto& spoil) {
    auto got = run.run(rows());
    EXPECT_EQ(difference_of("out", got, expected, c.hidden), "");
    spoil(got);
    return !difference_of("out", got, expected, c.hidden).empty();
  };
  EXPECT_TRUE(differs([&](auto& out) { out[17 * 256 + 3] ^= 1; }));
  EXPECT_TRUE(differs([&](auto& out) { std::swap_ranges(out.begin(), out.begin() + 256, out.begin() + 256); }));
  EXPECT_TRUE(differs([&](auto& out) { std::fill(out.begin() + 64, out.begin() + 128, uint16_t{0xFFFF}); }));
}

}  // namespace
}  // namespace tessera::testing
