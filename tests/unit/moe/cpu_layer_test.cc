// What the battery does not ask of the CPU layer (tests/moe): shards, shared experts of any width, and its promises,
// the same bits for any batch and number of threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "moe/run_cpu.h"

namespace tessera::testing {
namespace {

using moe::GateUpOrder;

const DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

// Routing weights of 16 bits are exact floats: the same bits as when they are given as floats.
TEST(CpuLayer, RoutingWeightsOfEveryType) {
  const LayerData data({.hidden = 72, .tokens = 40});
  const moe::CpuLayer layer(data.config(), data.weights(), 1);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    std::vector<float> wide;
    std::vector<uint16_t> narrow;
    for (size_t i = 0; i < data.ids().size(); ++i) {
      const float value = 0.1f + static_cast<float>(i % 7) / 9.0f;
      narrow.push_back(dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value));
      wide.push_back(dtype == DType::bf16 ? bf16_to_f32(narrow.back()) : f16_to_f32(narrow.back()));
    }
    const auto run = [&](const void* weights, DType weights_dtype) {
      GuardedBytes workspace(layer.workspace_bytes(40)), out(size_t{40} * 72 * 2);
      moe::LayerInputs inputs = data.inputs(out.data());
      inputs.topk_weights = weights;
      inputs.topk_weights_dtype = weights_dtype;
      layer.run(inputs, workspace.data(), workspace.size());
      const std::vector<std::byte> got(out.data(), out.data() + out.size());
      EXPECT_EQ(judge(data.layer_case(), got, moe::oracle(data.config(), data.weights(), inputs), kCpuSums), "");
      return got;
    };
    const auto expected = run(wide.data(), DType::f32);
    EXPECT_EQ(run(narrow.data(), dtype), expected);
    narrow[5] ^= 1;  // one unit in the last place of one weight shows
    EXPECT_NE(run(narrow.data(), dtype), expected);
  }
}

TEST(CpuLayer, SharedExpert) {
  for (const DType dtype : kDTypes) {
    for (const bool weight : {false, true}) {
      for (const int tokens : {1, 64, 256, 300}) {
        LayerCase c{.hidden = 72,
                    .intermediate = 256,
                    .experts = 3,
                    .tokens = tokens,
                    .dtype = dtype,
                    .shared_intermediate = 264,
                    .shared_weight = weight};
        expect_right(c);
        c.order = GateUpOrder::interleaved;
        c.gated = tokens != 64;
        c.routing = "none";  // the shared expert alone
        expect_right(c);
      }
    }
  }
}

TEST(CpuLayer, ShardsOfExperts) {
  for (const bool wide : {false, true}) {
    expect_right(
        {.experts = 4, .top_k = 4, .tokens = 50, .routing = "foreign", .ids_are_64_bit = wide, .first_expert = 3});
    expect_right({.experts = 4, .top_k = 4, .tokens = 50, .ids_are_64_bit = wide, .first_expert = 2000000000});
    expect_right({.experts = 4, .top_k = 4, .tokens = 50, .ids_are_64_bit = wide, .mapped = 13});
  }
}

TEST(CpuLayer, FirstExpertIsUnusedWithAMap) {
  const LayerCase c{.experts = 4, .top_k = 4, .tokens = 50, .routing = "foreign", .mapped = 13};
  const LayerData data(c);
  const auto expected = data.run();
  moe::LayerConfig config = data.config();
  config.first_expert = 3;
  EXPECT_EQ(data.run(moe::CpuLayer(config, data.weights(), 1)), expected);
  config.num_mapped_experts = 0;  // without the map it has an effect
  moe::LayerWeights weights = data.weights();
  weights.expert_map = nullptr;
  EXPECT_NE(data.run(moe::CpuLayer(config, weights, 1)), expected);
}

// The shards of a layer add up to the layer: every slot is served once.
TEST(CpuLayer, ShardsAddUpToTheWhole) {
  const LayerCase whole{.experts = 8,
                        .top_k = 3,
                        .tokens = 40,
                        .dtype = DType::f32,
                        .activation = {ActivationKind::identity},
                        .integers = true};
  const LayerData data(whole);
  const std::vector<float> expected = data.values(data.run());
  std::vector<float> sum(expected.size(), 0.0f);
  for (const int first : {0, 3, 6}) {
    moe::LayerConfig config = data.config();
    config.first_expert = first;
    config.num_experts = std::min(3, 8 - first);
    moe::LayerWeights weights = data.weights();
    const auto skipped = static_cast<size_t>(first * whole.hidden * whole.intermediate) * sizeof(float);
    weights.gate_up = static_cast<const std::byte*>(weights.gate_up) + 2 * skipped;
    weights.down = static_cast<const std::byte*>(weights.down) + skipped;
    const std::vector<float> part = data.values(data.run(moe::CpuLayer(config, weights, 1)));
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  }
  EXPECT_EQ(sum, expected);
}

TEST(CpuLayer, SameBitsForAnyNumberOfThreads) {
  for (const DType dtype : kDTypes) {
    for (const int tokens : {1, 30, 300}) {
      const LayerCase c{.hidden = 264,
                        .intermediate = 392,
                        .experts = 4,
                        .tokens = tokens,
                        .dtype = dtype,
                        .shared_intermediate = 136};
      const LayerData data(c);
      const auto expected = data.run();
      for (int threads = 2; threads <= 5; ++threads) {
        const moe::CpuLayer layer(data.config(), data.weights(), threads);
        EXPECT_EQ(layer.num_threads(), threads);
        EXPECT_EQ(data.run(layer), expected) << c << " threads " << threads;
      }
    }
  }
}

// A token alone, in a small batch, and among hundreds: heights of tiles, column groups and neighbours differ.
TEST(CpuLayer, SameBitsInAnyBatch) {
  for (const DType dtype : kDTypes) {
    for (const char* routing : {"random", "last"}) {
      const LayerCase c{.hidden = 200,
                        .intermediate = 264,
                        .experts = 3,
                        .tokens = 300,
                        .routing = routing,
                        .dtype = dtype,
                        .bias = true,
                        .shared_intermediate = 72};
      const LayerData data(c);
      const moe::CpuLayer layer(data.config(), data.weights(), 2);
      const auto whole = data.run(layer);
      const size_t row_bytes = whole.size() / 300;
      Buffer<std::byte> workspace(layer.workspace_bytes(300));
      for (const auto& [first, count] : std::map<int, int>{{0, 1}, {7, 1}, {40, 20}, {100, 130}, {299, 1}}) {
        GuardedBytes out(row_bytes * static_cast<size_t>(count));
        moe::LayerInputs inputs = data.inputs(out.data());
        inputs.x = static_cast<const std::byte*>(inputs.x) + row_bytes * static_cast<size_t>(first);
        inputs.topk_ids = static_cast<const int32_t*>(inputs.topk_ids) + first * c.top_k;
        inputs.topk_weights = static_cast<const float*>(inputs.topk_weights) + first * c.top_k;
        inputs.num_tokens = count;
        layer.run(inputs, workspace.data(), workspace.size());
        EXPECT_EQ(std::memcmp(out.data(), whole.data() + row_bytes * static_cast<size_t>(first), out.size()), 0)
            << c << " tokens " << first << " + " << count;
      }
    }
  }
}

TEST(CpuLayer, SameBitsRunAfterRun) {
  const LayerData data({.hidden = 72, .tokens = 300, .routing = "few"});
  const moe::CpuLayer layer(data.config(), data.weights(), 3);
  const auto expected = data.run(layer);
  for (int repeat = 0; repeat < 20; ++repeat) ASSERT_EQ(data.run(layer), expected);
}

TEST(CpuLayer, NanStaysInItsToken) {
  const LayerCase c{.tokens = 70, .routing = "last", .dtype = DType::f32};
  LayerData data(c);
  const std::vector<float> expected = data.values(data.run());
  data.topk_weights()[2 * 5] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> got = data.values(data.run());
  for (size_t i = 0; i < got.size(); ++i) {
    if (i / 64 == 5) {
      EXPECT_TRUE(std::isnan(got[i]));
    } else {
      EXPECT_EQ(got[i], expected[i]);
    }
  }
}

}  // namespace
}  // namespace tessera::testing
