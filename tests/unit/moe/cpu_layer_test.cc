// The CPU layer against the oracle by the numeric policy, and its promises: same bits for any batch and number of
// threads.
#include <gtest/gtest.h>

#include <map>

#include "unit/moe/layer_case.h"

namespace tessera::testing {
namespace {

using moe::GateUpOrder;

const DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

TEST(CpuLayer, ExactIntegers) {
  for (const DType dtype : kDTypes) {
    for (const ActivationKind kind : {ActivationKind::identity, ActivationKind::relu}) {
      for (const bool gated : {true, false}) {
        for (const int tokens : {1, 63, 129}) {
          expect_right({.hidden = 72,
                        .intermediate = 136,
                        .top_k = 3,
                        .tokens = tokens,
                        .dtype = dtype,
                        .gated = gated,
                        .activation = {kind},
                        .bias = true,
                        .shared_intermediate = 24,
                        .shared_weight = true,
                        .integers = true});
        }
      }
    }
  }
}

TEST(CpuLayer, TokensAroundTileHeights) {
  for (const DType dtype : kDTypes) {
    for (const int tokens : {0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 193, 255, 256, 257, 300}) {
      expect_right({.hidden = 24, .intermediate = 16, .experts = 3, .tokens = tokens, .dtype = dtype});
      expect_right({.hidden = 24,
                    .intermediate = 16,
                    .experts = 3,
                    .top_k = 1,
                    .tokens = tokens,
                    .routing = "last",
                    .dtype = dtype,
                    .activation = {ActivationKind::identity},
                    .integers = true});
    }
  }
}

// Where data are not integers, the intermediate is wide: one element of it that falls on the other side of a tie than
// the reference's must not weigh on a row's norm.
TEST(CpuLayer, NumbersOfExperts) {
  for (const int experts : {1, 2, 3, 5, 6, 7, 8, 12, 60, 63, 64, 65, 160, 192, 255, 256, 257, 384, 512, 1024}) {
    expect_right({.hidden = 32, .intermediate = 128, .experts = experts, .top_k = std::min(experts, 2), .tokens = 130});
  }
}

TEST(CpuLayer, NumbersOfSlots) {
  for (const int top_k : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32}) {
    for (const DType dtype : kDTypes) {
      expect_right({.hidden = 40, .intermediate = 64, .experts = 32, .top_k = top_k, .tokens = 40, .dtype = dtype});
    }
  }
}

TEST(CpuLayer, TailsOfHiddenAndIntermediate) {
  for (const int hidden : {8, 56, 120, 128, 136, 264, 520}) {
    for (const int intermediate : {64, 72, 120, 136, 200, 256, 264}) {
      expect_right({.hidden = hidden, .intermediate = intermediate, .experts = 3, .tokens = 20});
    }
  }
  for (const int width : {8, 16, 24, 40}) {
    expect_right({.hidden = width,
                  .intermediate = width,
                  .tokens = 70,
                  .activation = {ActivationKind::identity},
                  .integers = true});
  }
}

TEST(CpuLayer, ActivationsBiasesAndOrders) {
  for (const bool gated : {true, false}) {
    for (int kind = 0; kind <= static_cast<int>(ActivationKind::clamped_swiglu); ++kind) {
      const auto activation = static_cast<ActivationKind>(kind);
      if (gated ? activation == ActivationKind::relu_squared : activation == ActivationKind::clamped_swiglu) continue;
      for (const bool bias : {false, true}) {
        for (const GateUpOrder order : {GateUpOrder::gate_first, GateUpOrder::interleaved, GateUpOrder::up_first}) {
          for (const DType dtype : kDTypes) {
            expect_right({.hidden = 48,
                          .intermediate = 136,
                          .experts = 3,
                          .tokens = 17,
                          .dtype = dtype,
                          .gated = gated,
                          .activation = {activation, 1.702f, 1.0f, 0.75f},
                          .bias = bias,
                          .order = order});
          }
        }
      }
    }
  }
}

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
      EXPECT_EQ(data.judge({out.data(), out.data() + out.size()}, moe::oracle(data.config(), data.weights(), inputs)),
                "");
      return std::vector<std::byte>(out.data(), out.data() + out.size());
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
    expect_right({.experts = 4, .top_k = 4, .tokens = 50, .routing = "bad", .ids_are_64_bit = wide, .first_expert = 3});
    expect_right({.experts = 4, .top_k = 4, .tokens = 50, .ids_are_64_bit = wide, .first_expert = 2000000000});
    expect_right({.experts = 4, .top_k = 4, .tokens = 50, .ids_are_64_bit = wide, .mapped = 13});
  }
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
                        .shared_intermediate = 72,
                        .threads = 2};
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
  const LayerData data({.hidden = 72, .tokens = 300, .routing = "duplicate", .threads = 3});
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

// The judge must see what kernels get wrong.
TEST(CpuLayer, JudgeFindsWhatKernelsGetWrong) {
  for (const DType dtype : kDTypes) {
    const LayerCase c{.hidden = 256, .intermediate = 64, .experts = 8, .tokens = 70, .dtype = dtype};
    LayerData data(c);
    const auto reference = data.reference();
    const auto right = data.run();
    ASSERT_EQ(data.judge(right, reference), "");
    const size_t element = dtype_size(dtype);
    const size_t row = 256 * element;

    EXPECT_NE(data.judge(std::vector<std::byte>(right.size()), reference), "") << "zeroed output";

    auto swapped = right;
    std::swap_ranges(swapped.begin(), swapped.begin() + static_cast<std::ptrdiff_t>(row),
                     swapped.begin() + static_cast<std::ptrdiff_t>(row));
    EXPECT_NE(data.judge(swapped, reference), "") << "swapped rows";

    auto patched = right;  // 32 rows x 128 columns come from the columns beside them
    for (size_t r = 32; r < 64; ++r) std::memcpy(&patched[r * row + 128 * element], &patched[r * row], 128 * element);
    EXPECT_NE(data.judge(patched, reference), "") << "wrong patch";

    auto poisoned = right;
    std::memset(&poisoned[77 * element], 0xFF, element);
    EXPECT_NE(data.judge(poisoned, reference), "") << "an element that was not written";

    std::vector<int64_t> ids = data.ids();
    const int64_t dropped = ids[9];
    for (int64_t& id : ids) id = id == dropped ? -1 : id;
    data.set_ids(ids);
    EXPECT_NE(data.judge(data.run(), reference), "") << "dropped expert";

    LayerData other(c, 2);
    EXPECT_NE(other.judge(right, other.reference()), "") << "another layer's output";
  }
}

TEST(CpuLayer, JudgeOfIntegersSeesOneUnit) {
  const LayerData data({.tokens = 9, .dtype = DType::f32, .activation = {ActivationKind::identity}, .integers = true});
  const auto reference = data.reference();
  auto out = data.run();
  ASSERT_EQ(data.judge_exact(out, reference), "");
  EXPECT_GT(std::count_if(reference.out.begin(), reference.out.end(), [](double v) { return v != 0.0; }), 100);
  float value;
  std::memcpy(&value, &out[40 * sizeof(float)], sizeof(value));
  value = std::nextafter(value, 1e9f);
  std::memcpy(&out[40 * sizeof(float)], &value, sizeof(value));
  EXPECT_NE(data.judge_exact(out, reference), "");
}

}  // namespace
}  // namespace tessera::testing
