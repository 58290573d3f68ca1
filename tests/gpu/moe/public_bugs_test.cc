// Bugs that other people's mixture-of-experts kernels had in public, by their row in the project's bug table (A: empty
// experts, B: skew, C: 32-bit offsets, D: ids, E: shapes). What other tests cover already is not repeated here: every T
// and E, tails, bad ids, planted errors, grid limits.
#include <climits>

#include "gpu/moe/gpu_fixture.h"

namespace tessera::testing {
namespace {

std::vector<uint16_t> row(const std::vector<uint16_t>& out, int token, int width) {
  return {out.begin() + static_cast<ptrdiff_t>(token) * width, out.begin() + static_cast<ptrdiff_t>(token + 1) * width};
}

// A1, A2: rows of no expert, among others, in memory full of NaNs.
TEST(MoePublicBugs, A1_RowsOfNoExpertAreZero) {
  const LayerCase c{128, 512, 6, 3, 257, "random"};
  LayerRun run(c);
  auto ids = run.host_ids();
  for (size_t n = 0; n < ids.size(); ++n) {
    if (n / 3 % 2 == 0) ids[n] = -1;
  }
  run.set_ids(ids);
  const auto out = run.run();
  EXPECT_EQ(run.judge(out, run.reference()), "");
  for (int token = 0; token < c.tokens; token += 2) ASSERT_EQ(row(out, token, 128), std::vector<uint16_t>(128, 0));
}

TEST(MoePublicBugs, A4_EmptyExpertsAnywhere) {
  const std::vector<std::vector<int32_t>> used = {{3, 4, 5, 6, 7}, {0, 1, 2}, {0, 7}, {2, 5}, {0}, {4}, {7}};
  for (const auto& experts : used) {
    const LayerCase c{64, 512, 8, 1, 140, "random"};
    LayerRun run(c);
    std::vector<int32_t> ids(140);
    for (size_t n = 0; n < ids.size(); ++n) ids[n] = experts[n % experts.size()];
    run.set_ids(ids);
    expect_right(run, c);
  }
}

TEST(MoePublicBugs, A5_WeightZero) {
  LayerRun run({128, 64, 4, 2, 70, "random"});
  run.topk_weights().upload(std::vector<float>(140, 0.0f));
  for (const uint16_t bits : run.run()) ASSERT_EQ(bits, 0);
}

// A6, A9: no token through the whole layer and through every step of it leaves no error and no work behind.
TEST(MoePublicBugs, A6_NoTokensThroughEveryStep) {
  const LayerCase c{64, 512, 4, 2, 5, "random"};
  LayerRun run(c);
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(5));
  auto none = run.inputs();
  none.num_tokens = 0;
  run.out().poison();
  layer.run(none, workspace.data(), workspace.bytes(), nullptr);
  using Step = moe::CudaLayer::Step;
  for (const Step step : {Step::plan, Step::gate_up, Step::down, Step::combine}) {
    layer.run_step(step, none, workspace.data(), workspace.bytes(), nullptr);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  }
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  for (const uint16_t bits : run.out().download<uint16_t>(5 * 64)) ASSERT_EQ(bits, 0xFFFF);
  expect_right(run, c);
}

// A10: a shard that serves none of the ids must not leave the previous layer's result in place.
TEST(MoePublicBugs, A10_ShardWithoutRowsOverwritesWhatWasThere) {
  LayerRun run({64, 64, 4, 2, 90, "random"});
  const moe::CudaLayer here(run.config(), run.weights());
  auto config = run.config();
  config.first_expert = 100;
  const moe::CudaLayer elsewhere(config, run.weights());
  GuardedBuffer workspace(here.workspace_bytes(90));
  here.run(run.inputs(), workspace.data(), workspace.bytes(), nullptr);
  elsewhere.run(run.inputs(), workspace.data(), workspace.bytes(), nullptr);
  for (const uint16_t bits : run.out().download<uint16_t>(90 * 64)) ASSERT_EQ(bits, 0);
}

TEST(MoePublicBugs, B1_AllTokensToOneExpert) {
  for (const int expert : {0, 31, 63}) {
    const LayerCase c{64, 512, 64, 1, 8192, "last"};
    LayerRun run(c);
    run.set_ids(std::vector<int32_t>(8192, expert));
    expect_right(run, c);
  }
}

// B5: both sides of where the plan goes from one launch to two, and of every tile height and pair of tiles.
TEST(MoePublicBugs, B5_BothSidesOfEveryThreshold) {
  for (const int pairs : {1024, 2048, 4096}) {
    for (const int tokens : {pairs / 4 - 1, pairs / 4, pairs / 4 + 1}) expect_right({64, 512, 7, 4, tokens, "random"});
  }
  for (const int rows : {7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 383, 384, 385}) {
    const LayerCase c{64, 512, 3, 1, rows + 2, "random"};
    LayerRun run(c);
    std::vector<int32_t> ids(static_cast<size_t>(rows) + 2, 1);
    ids.front() = 0;
    ids.back() = 2;
    run.set_ids(ids);
    expect_right(run, c);
  }
}

/// Judges a few tokens of a run whose outputs are too many to judge all.
void expect_some_right(const LayerCase& c, const std::vector<int32_t>& tokens) {
  LayerRun run(c);
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(c.tokens));
  layer.run(run.inputs(), workspace.data(), workspace.bytes(), nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_TRUE(workspace.guards_intact() && run.out().guards_intact());
  const auto ref = reference_layer(run.config(), run.weights(), run.inputs(), tokens);
  const auto width = static_cast<size_t>(c.hidden);
  for (size_t n = 0; n < tokens.size(); ++n) {
    std::vector<uint16_t> got(width);
    const auto* out = static_cast<const uint16_t*>(run.out().data()) + static_cast<size_t>(tokens[n]) * width;
    TESSERA_CUDA_CHECK(cudaMemcpy(got.data(), out, width * 2, cudaMemcpyDeviceToHost));
    double norm2 = 0.0;
    for (size_t i = 0; i < width; ++i) {
      const double expected = ref.out[n * width + i];
      ASSERT_LE(std::fabs(run.value(got[i]) - expected), ref.bound[n * width + i]) << c << " token " << tokens[n];
      norm2 += expected * expected;
    }
    ASSERT_GT(norm2, 0.0) << tokens[n];
  }
}

// C1, C3, C4, C6: tokens, routed rows, outputs, and the intermediate of more than 2^31 elements each.
TEST(MoePublicBugs, C1_RowsBeyondTwoToTheThirtyOne) {
  const int tokens = (1 << 19) + 200;
  const std::vector<int32_t> sample = {0, 1, (1 << 19) - 1, 1 << 19, (1 << 19) + 1, tokens - 2, tokens - 1};
  expect_some_right({4096, 64, 8, 1, tokens, "random"}, sample);    // x, rows and out
  expect_some_right({64, 4096, 8, 1, tokens, "balanced"}, sample);  // intermediate
}

// D1: a token of NaNs (a padded one) spoils itself and nobody else.
TEST(MoePublicBugs, D1_NanTokensLeaveOthersAlone) {
  const LayerCase c{128, 256, 8, 2, 300, "random"};
  LayerRun run(c);
  const auto expected = run.run();
  std::vector<uint16_t> x(static_cast<size_t>(c.tokens) * 128);
  TESSERA_CUDA_CHECK(cudaMemcpy(x.data(), run.x(), x.size() * 2, cudaMemcpyDeviceToHost));
  for (int token = 0; token < c.tokens; token += 3) {
    const uint16_t poison = f32_to_bf16(token % 2 == 0 ? NAN : INFINITY);
    std::fill_n(x.begin() + static_cast<ptrdiff_t>(token) * 128, 128, poison);
  }
  TESSERA_CUDA_CHECK(cudaMemcpy(run.x(), x.data(), x.size() * 2, cudaMemcpyHostToDevice));
  const auto got = run.run();
  for (int token = 0; token < c.tokens; ++token) {
    if (token % 3 != 0) {
      ASSERT_EQ(row(got, token, 128), row(expected, token, 128)) << token;
    } else if (token % 2 == 0) {
      ASSERT_TRUE(std::isnan(run.value(got[static_cast<size_t>(token) * 128]))) << token;
    }
  }
}

// D4, D9: ids at the ends of their type, also where subtracting the first expert would wrap.
TEST(MoePublicBugs, D4_ExtremeIdsIndexNothing) {
  for (const bool wide : {false, true}) {
    LayerCase c{64, 512, 4, 4, 100, "random", DType::bf16, true, {}, false, wide};
    c.first_expert = 1000;
    LayerRun run(c);
    const int32_t ids[] = {INT_MIN, INT_MAX, 1003, -1, 1000, 0, INT_MIN + 999, 1004, 3, INT_MAX - 3, 1001, 999};
    std::vector<int32_t> all(400);
    for (size_t n = 0; n < all.size(); ++n) all[n] = ids[n % std::size(ids)];
    run.set_ids(all);
    expect_right(run, c);
  }
}

TEST(MoePublicBugs, E2_GroupsOfEverySize) {
  LayerCase c{64, 512, 40, 1, 40 * 41 / 2, "random"};
  LayerRun run(c);
  std::vector<int32_t> ids;
  for (int32_t expert = 0; expert < 40; ++expert) ids.insert(ids.end(), static_cast<size_t>(expert) + 1, expert);
  run.set_ids(ids);
  expect_right(run, c);
}

// E5: 128 groups of 768 columns was an illegal instruction; the narrow shards of tensor parallelism stand beside it.
TEST(MoePublicBugs, E5_ManyGroupsOfPublishedWidths) {
  for (const int intermediate : {96, 128, 192, 256, 704, 768, 1408})
    expect_right({64, intermediate, 128, 2, 150, "random"});
}

}  // namespace
}  // namespace tessera::testing
