// Bugs that other MoE implementations had in public, as far as the CPU layer can have them; one test each. The letters
// are those of the project's table of such bugs.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "moe/run_cpu.h"
#include "tessera/core/error.h"
#include "tessera/moe/router.h"
#include "unit/io/allocation_counter.h"
#include "unit/random_values.h"

namespace tessera::testing {
namespace {

constexpr Activation kIdentity{ActivationKind::identity};

std::string message(const moe::LayerConfig& config, const moe::LayerWeights& weights, int threads = 1) {
  try {
    const moe::CpuLayer layer(config, weights, threads);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

// grouped_gemm#36: rows of no expert kept what was in memory.
TEST(PublicBugs, A1_RowsWithoutExpertsAreExactlyPlusZero) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const LayerData data({.tokens = 67, .routing = "none", .dtype = dtype});
    for (const std::byte byte : data.run()) ASSERT_EQ(byte, std::byte{0});
  }
}

// cutlass#1593: K = 0 read out of bounds.
TEST(PublicBugs, A3_WidthsOfZeroAreRejected) {
  const LayerData data({});
  moe::LayerConfig config = data.config();
  config.hidden_size = 0;
  EXPECT_EQ(message(config, data.weights()), "hidden_size: got 0, expected a positive multiple of 8");
  config = data.config();
  config.intermediate_size = 0;
  EXPECT_EQ(message(config, data.weights()), "intermediate_size: got 0, expected a positive multiple of 8");
}

// torchtitan#1166: experts without tokens hung the launch.
TEST(PublicBugs, A4_EmptyExpertsAtTheStartTheMiddleAndTheEnd) {
  for (const std::vector<int64_t>& used : {std::vector<int64_t>{3, 4}, {0, 5}, {0, 1}, {5, 5}, {2, 2}, {0, 0}}) {
    const LayerCase c{.experts = 6, .tokens = 40};
    LayerData data(c);
    std::vector<int64_t> ids;
    for (int t = 0; t < 40; ++t) ids.insert(ids.end(), used.begin(), used.end());
    data.set_ids(ids);
    EXPECT_EQ(verdict_of(data, data.run(2)), "") << used[0] << " " << used[1];
  }
}

// sglang#23609: no tokens was an invalid launch. sglang#38773: an empty tensor's null pointer was refused.
TEST(PublicBugs, A6_A8_NoTokensSucceedAndNeedNoPointers) {
  const LayerData data({});
  const moe::CpuLayer layer(data.config(), data.weights(), 1);
  layer.run({}, nullptr, 0);
  EXPECT_GT(layer.workspace_bytes(0), 0u);
}

// sglang#22455: "not a power of two" at 0 and its neighbours chose another path.
TEST(PublicBugs, A7_CountsAroundZeroAndPowersOfTwo) {
  for (const int tokens : {0, 1, 2, 3, 4, 5, 31, 32, 33}) {
    expect_right(
        {.hidden = 8, .intermediate = 8, .experts = 2, .tokens = tokens, .activation = kIdentity, .integers = true});
  }
}

// ik_llama.cpp#1604: a rank without local experts left the layer before in place.
TEST(PublicBugs, A10_AShardThatNobodyChoseWritesZeros) {
  const LayerData data({.tokens = 20, .dtype = DType::f32});
  moe::LayerConfig config = data.config();
  config.first_expert = 1000;
  for (const std::byte byte : data.run(moe::CpuLayer(config, data.weights(), 1))) ASSERT_EQ(byte, std::byte{0});
}

// tt-metal#41434: all tokens to the last expert overflowed a buffer.
TEST(PublicBugs, B1_AllTokensToOneExpert) {
  for (const char* routing : {"first", "middle", "last"}) {
    for (const int top_k : {1, 2}) {
      expect_right({.hidden = 24,
                    .intermediate = 24,
                    .experts = 40,
                    .top_k = top_k,
                    .tokens = 1000,
                    .routing = routing,
                    .activation = kIdentity,
                    .integers = true},
                   2);
    }
  }
}

// MoE-Infinity#198: 280 tokens against a limit of 256 ended the process.
TEST(PublicBugs, B2_TooSmallAWorkspaceIsAnErrorAndWritesNothing) {
  const LayerData data({.tokens = 280, .routing = "last"});
  const moe::CpuLayer layer(data.config(), data.weights(), 1);
  const size_t needed = layer.workspace_bytes(280);
  GuardedBytes workspace(needed);
  GuardedBytes out(280 * 64 * 2);
  const auto run = [&](size_t bytes) {
    try {
      layer.run(data.inputs(out.data()), workspace.data(), bytes);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(run(layer.workspace_bytes(256)),
            str_cat("workspace: got ", layer.workspace_bytes(256), " bytes, expected at least ", needed));
  EXPECT_EQ(run(needed - 1), str_cat("workspace: got ", needed - 1, " bytes, expected at least ", needed));
  for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], std::byte{0xFF});
  EXPECT_EQ(run(needed), "accepted");
}

// uzu#715: one histogram where the scatter expected one for each 256 tokens.
TEST(PublicBugs, B3_TokensAroundBlocksOf256) {
  for (const int tokens : {255, 256, 257, 511, 512, 513}) {
    expect_right(
        {.hidden = 16, .intermediate = 16, .experts = 3, .tokens = tokens, .activation = kIdentity, .integers = true},
        2);
  }
}

// tt-metal#50669: only some numbers of tokens were right.
TEST(PublicBugs, B4_EveryNumberOfTokensFrom0To300) {
  for (int tokens = 0; tokens <= 300; ++tokens) {
    expect_right(
        {.hidden = 16, .intermediate = 8, .experts = 3, .tokens = tokens, .activation = kIdentity, .integers = true}, 1,
        static_cast<uint64_t>(tokens));
  }
}

// vllm#34279, #50220, sglang#4727, #35188, flashinfer#2642: 32-bit products of rows and columns. Sizes that no test can
// hold are asked for, not taken.
TEST(PublicBugs, C1_C2_C3_C4_C6_SizesAreCountedIn64Bits) {
  const LayerData data({.top_k = 8, .dtype = DType::bf16});
  moe::LayerConfig config = data.config();
  config.hidden_size = 40960;
  config.intermediate_size = 1024;
  const moe::CpuLayer layer(config, data.weights(), 1);
  // Per token: plan 2 x 4 bytes a slot, intermediate and rows 2 bytes an element.
  const size_t per_token = 8 * (2 * 4 + 2 * (1024 + 40960));
  for (const int32_t tokens : {6553, 52428, 52429, 52430, 349525, 349526, 1000000, 134217727}) {
    const size_t bytes = layer.workspace_bytes(tokens) - layer.workspace_bytes(0);
    EXPECT_GE(bytes, per_token * static_cast<size_t>(tokens));
    EXPECT_LE(bytes, per_token * static_cast<size_t>(tokens) + 512);
  }
}

// Liger-Kernel#1296: the offset of an expert's weights, E * N * K > 2^31. The weights lie in memory that is reserved
// and only where the last expert's are, filled.
TEST(PublicBugs, C5_WeightsBeyondTwoToTheThirtyOne) {
  const LayerCase small{.hidden = 2048,
                        .intermediate = 520,
                        .experts = 1,
                        .top_k = 1,
                        .tokens = 3,
                        .routing = "first",
                        .activation = kIdentity,
                        .integers = true};
  LayerData data(small);
  moe::LayerConfig config = data.config();
  config.num_experts = 1024;
  const size_t gate_up_bytes = 2 * 520 * 2048 * sizeof(uint16_t);
  const size_t down_bytes = gate_up_bytes / 2;
  static_assert(1023ull * 2 * 520 * 2048 > 1ull << 31);
  const auto reserve = [](size_t bytes) {
    return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  };
  void* const gate_up = reserve(1025 * gate_up_bytes);
  void* const down = reserve(1025 * down_bytes);
  ASSERT_NE(gate_up, MAP_FAILED);
  ASSERT_NE(down, MAP_FAILED);
  std::memcpy(static_cast<std::byte*>(gate_up) + 1023 * gate_up_bytes, data.weights().gate_up, gate_up_bytes);
  std::memcpy(static_cast<std::byte*>(down) + 1023 * down_bytes, data.weights().down, down_bytes);
  const auto expected = data.run();
  data.set_ids({1023, 1023, 1023});
  const auto got = data.run(moe::CpuLayer(config, {gate_up, down}, 1));
  EXPECT_EQ(got, expected);
  EXPECT_NE(std::count(got.begin(), got.end(), std::byte{0}), static_cast<int64_t>(got.size()));
  munmap(gate_up, 1025 * gate_up_bytes);
  munmap(down, 1025 * down_bytes);
}

// vllm#39391 and others: rows of NaN logits became expert 0 eight times and corrupted the rows beside them. Here
// through the layer: only the NaN row's output is NaN. (The router alone: router_test.cc, D1, D3, D5.)
TEST(PublicBugs, D1_ANanRowOfLogitsSpoilsItsTokenOnly) {
  const LayerCase c{.experts = 8, .top_k = 4, .tokens = 20, .dtype = DType::f32};
  LayerData data(c);
  Buffer<float> logits(20 * 8);
  const std::vector<float> clean = test::random_normal(20 * 8, 2.0f, 9);
  std::copy(clean.begin(), clean.end(), logits.begin());
  const auto run = [&] {
    std::vector<int32_t> ids(20 * 4);
    moe::route({.num_experts = 8, .top_k = 4},
               {logits.data(), nullptr, ids.data(), data.topk_weights().data(), nullptr, 20});
    data.set_ids({ids.begin(), ids.end()});
    return data.values(data.run());
  };
  const std::vector<float> expected = run();
  std::fill_n(logits.data() + 8 * 7, 8, std::numeric_limits<float>::quiet_NaN());
  const std::vector<float> got = run();
  for (size_t i = 0; i < got.size(); ++i) {
    if (i / 64 == 7) {
      EXPECT_TRUE(std::isnan(got[i]));
    } else {
      EXPECT_EQ(got[i], expected[i]);
    }
  }
}

// flashinfer#3011: the second of two equal ids was never written.
TEST(PublicBugs, D2_DuplicateIdsCountEach) {
  expect_right({.experts = 4, .top_k = 8, .tokens = 33, .routing = "few"});
  expect_right({.experts = 4,
                .top_k = 8,
                .tokens = 33,
                .routing = "last",
                .dtype = DType::f32,
                .activation = kIdentity,
                .integers = true});
}

// ROCm/aiter#4636, sparkinfer#159: negative and too large ids were used as an index, by the layer and by the histogram.
TEST(PublicBugs, D4_D9_IdsOutOfRangeAreSkippedAndNeverIndex) {
  for (const bool wide : {false, true}) {
    LayerCase c{.experts = 5, .top_k = 6, .tokens = 80, .routing = "foreign", .ids_are_64_bit = wide};
    expect_right(c);
    c.mapped = 11;
    expect_right(c);
  }
  LayerData data({.experts = 5, .top_k = 1, .tokens = 4, .ids_are_64_bit = true, .first_expert = 3});
  const int64_t least = std::numeric_limits<int64_t>::min();
  data.set_ids({least, std::numeric_limits<int64_t>::max(), (int64_t{1} << 32) + 3, 3});
  const auto out = data.values(data.run());
  EXPECT_TRUE(std::all_of(out.begin(), out.begin() + 3 * 64, [](float v) { return v == 0.0f; }));
  EXPECT_EQ(verdict_of(data, data.run()), "");
}

// vllm#19590: slots were marked as foreign only after all experts had been laid out.
TEST(PublicBugs, D6_ExpertMapWithHoles) {
  for (const int mapped : {1, 2, 7, 30}) {
    expect_right({.experts = 4, .top_k = 4, .tokens = 60, .mapped = mapped}, 2);
  }
}

// flashinfer#1469: a shard beyond the last id; here such a shard cannot be described.
TEST(PublicBugs, D7_ShardsBeyondTheRangeOfIdsAreRejected) {
  const LayerData data({});
  moe::LayerConfig config = data.config();
  config.first_expert = INT32_MAX - 7;
  EXPECT_EQ(message(config, data.weights()), "first_expert: got 2147483640, expected 0..2147483639");
  config.first_expert = -1;
  EXPECT_EQ(message(config, data.weights()), "first_expert: got -1, expected 0..2147483639");
}

// flashinfer#3547: an offset above 0 gave an output of zeros.
TEST(PublicBugs, D8_ShardsWithAnOffset) {
  for (const int first : {1, 8, 100000}) {
    const LayerCase c{.experts = 4, .tokens = 30, .first_expert = first};
    const LayerData data(c);
    const auto out = data.run();
    EXPECT_EQ(verdict_of(data, out), "");
    const std::vector<float> values = data.values(out);
    EXPECT_EQ(std::count(values.begin(), values.end(), 0.0f), 0);
  }
}

// pytorch#155466: the alignment check looked at offsets along the dimension that varies. Experts here start at any row.
TEST(PublicBugs, E2_ExpertsStartAtOddRows) {
  for (const int tokens : {1, 3, 5, 9, 33}) {
    expect_right({.hidden = 8,
                  .intermediate = 8,
                  .experts = 7,
                  .top_k = 3,
                  .tokens = tokens,
                  .activation = kIdentity,
                  .integers = true});
  }
}

// cutlass#519: misaligned pointers reached the kernel.
TEST(PublicBugs, E3_MisalignedPointersAreNamed) {
  const LayerData data({});
  const auto shifted = [](const void* pointer, int bytes) {
    return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(pointer) + static_cast<uintptr_t>(bytes));
  };
  const moe::CpuLayer layer(data.config(), data.weights(), 1);
  Buffer<std::byte> workspace(layer.workspace_bytes(65));
  GuardedBytes out(65 * 64 * 2);
  for (const int bytes : {2, 4, 8}) {
    moe::LayerWeights weights = data.weights();
    weights.gate_up = shifted(weights.gate_up, bytes);
    EXPECT_EQ(message(data.config(), weights), "gate_up weight: got a misaligned pointer, expected 16-byte alignment");
    weights = data.weights();
    weights.down = shifted(weights.down, bytes);
    EXPECT_EQ(message(data.config(), weights), "down weight: got a misaligned pointer, expected 16-byte alignment");
    moe::LayerInputs inputs = data.inputs(out.data());
    inputs.x = shifted(inputs.x, bytes);
    EXPECT_THROW(layer.run(inputs, workspace.data(), workspace.size()), Error);
    inputs = data.inputs(out.data() + bytes);
    EXPECT_THROW(layer.run(inputs, workspace.data(), workspace.size()), Error);
    EXPECT_THROW(layer.run(data.inputs(out.data()), workspace.data() + bytes, workspace.size()), Error);
  }
}

// TensorRT-LLM#18520: a width that the kernel could not take gave zeros.
TEST(PublicBugs, E6_WidthsThatAreNoMultipleOf8AreRejected) {
  const LayerData data({});
  for (const int width : {1, 4, 12, 100, -8}) {
    moe::LayerConfig config = data.config();
    config.hidden_size = width;
    EXPECT_EQ(message(config, data.weights()),
              str_cat("hidden_size: got ", width, ", expected a positive multiple of 8"));
    config = data.config();
    config.intermediate_size = width;
    EXPECT_EQ(message(config, data.weights()),
              str_cat("intermediate_size: got ", width, ", expected a positive multiple of 8"));
  }
}

// LightLLM#1369: numbers of experts that are no power of two. (With every id in use.)
TEST(PublicBugs, E7_AnyNumberOfExperts) {
  for (const int experts : {1, 2, 3, 5, 6, 7, 12, 60, 63, 64, 65, 160, 192, 255, 256, 257, 384, 512}) {
    expect_right({.hidden = 8,
                  .intermediate = 8,
                  .experts = experts,
                  .top_k = 1,
                  .tokens = 2 * experts + 1,
                  .routing = "balanced",
                  .activation = kIdentity,
                  .integers = true});
  }
}

// Beyond the table: what grows with the tokens is in the workspace. Here that is 3 MB (two rows of 64 + 64 elements a
// slot); the heap sees the plans of the launches and what oneDNN notes about each product.
TEST(CpuLayerMemory, RunTakesNoMemoryByTheToken) {
  const LayerData data({.tokens = 3000, .dtype = DType::f32});
  const moe::CpuLayer layer(data.config(), data.weights(), 1);
  Buffer<std::byte> workspace(layer.workspace_bytes(3000));
  Buffer<std::byte> out(3000 * 64 * sizeof(float));
  const size_t before = allocated_bytes();
  layer.run(data.inputs(out.data()), workspace.data(), workspace.size());
  EXPECT_GT(workspace.size(), size_t{3000} * 2 * 128 * sizeof(float));
  EXPECT_LT(allocated_bytes() - before, 128u * 1024);
}

}  // namespace
}  // namespace tessera::testing
