// The judge of `tessera bench moe`: passes what a layer computes, finds what is planted.
#include "moe_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "moe/judge/oracle.h"
#include "moe_data.h"
#include "tessera/core/buffer.h"
#include "tessera/moe/cpu_layer.h"

namespace tessera::cli {
namespace {

constexpr int32_t kHidden = 64, kIntermediate = 40, kExperts = 6, kTopK = 2, kTokens = 11;

// Of weights with scales: wide enough for blocks that have neighbours.
moe::LayerConfig small_layer(DType dtype, moe::WeightFormat format) {
  const bool wide = format != moe::WeightFormat::dense;
  moe::LayerConfig config;
  config.weight_format = format;
  config.hidden_size = wide ? 272 : kHidden;
  config.intermediate_size = wide ? 144 : kIntermediate;
  config.num_experts = kExperts;
  config.top_k = kTopK;
  config.dtype = dtype;
  config.first_expert = 3;
  return config;
}

/// A layer that has run; the test may change what it left.
struct RunLayer {
  explicit RunLayer(DType dtype, moe::WeightFormat format = moe::WeightFormat::dense)
      : config(small_layer(dtype, format)),
        x(elements(kTokens, config.hidden_size) * dtype_size(dtype)),
        out(x.size()),
        topk_weights(kTokens * kTopK, 0.5f) {
    const NormalPattern pattern(100'003, 1);
    const auto tensors = weight_tensors(config);
    for (size_t i = 0; i < tensors.size(); ++i) {
      weights[i] = Buffer<std::byte>(kExperts * tensors[i].expert_bytes);
      const size_t count = weights[i].size() / tensors[i].element_bytes;
      if (tensors[i].kind == WeightKind::numbers)
        pattern.fill(dtype, weights[i].data(), count, 0.1f, 31 * i);
      else
        pattern.fill(tensors[i], dtype, weights[i].data(), count, 31 * i);
      run.weights.*tensors[i].field = weights[i].data();
    }
    pattern.fill(dtype, x.data(), x.size() / dtype_size(dtype), 1.0f, 17);
    for (int32_t slot = 0; slot < kTokens * kTopK; ++slot) ids.push_back(slot % 10);  // 0..2 and 9 are other shards'
    run.inputs.x = x.data();
    run.inputs.topk_ids = ids.data();
    run.inputs.topk_weights = topk_weights.data();
    run.inputs.out = out.data();
    run.inputs.num_tokens = kTokens;
    const moe::CpuLayer layer(config, run.weights, 1);
    Buffer<std::byte> workspace(layer.workspace_bytes(kTokens));
    layer.run(run.inputs, workspace.data(), workspace.size());
  }

  CheckResult check() const {
    return check_runs(config, {&run, 1}, moe::kCpuAccumulatorUnit,
                      [](void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); });
  }
  uint16_t* out_row(int32_t token) { return reinterpret_cast<uint16_t*>(out.data()) + token * kHidden; }

  float* scales(size_t tensor) { return reinterpret_cast<float*>(weights[tensor].data()); }

  moe::LayerConfig config;
  std::array<Buffer<std::byte>, 4> weights;  // of weight_tensors
  Buffer<std::byte> x, out;
  std::vector<float> topk_weights;
  std::vector<int32_t> ids;
  FinishedRun run;
};

TEST(MoeCheck, PassesWhatTheLayerComputes) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const CheckResult result = RunLayer(dtype).check();
    EXPECT_TRUE(result.passed()) << dtype_name(dtype) << " " << result.largest_error_of_bound;
    EXPECT_GT(result.largest_error_of_bound, 0.0);
    EXPECT_EQ(result.num_tokens, 6);
  }
}

TEST(MoeCheck, FindsPlantedErrors) {
  const auto fails = [](const std::function<void(RunLayer&)>& plant) {
    RunLayer layer(DType::bf16);
    plant(layer);
    return !layer.check().passed();
  };
  EXPECT_FALSE(fails([](RunLayer&) {}));
  EXPECT_TRUE(fails([](RunLayer& l) { l.out_row(0)[7] = f32_to_bf16(bf16_to_f32(l.out_row(0)[7]) + 0.5f); }));
  EXPECT_TRUE(fails([](RunLayer& l) { l.out_row(kTokens - 1)[0] = 0x7FC0; }));         // NaN
  EXPECT_TRUE(fails([](RunLayer& l) { std::memset(l.out_row(2), 0, 2 * kHidden); }));  // a zeroed row
  EXPECT_TRUE(fails([](RunLayer& l) { std::swap_ranges(l.out_row(2), l.out_row(3), l.out_row(4)); }));
  EXPECT_TRUE(fails([](RunLayer& l) { l.ids[4] = 8; }));               // another expert than the layer used
  EXPECT_TRUE(fails([](RunLayer& l) { l.ids[4] = -1; }));              // an expert that was dropped
  EXPECT_TRUE(fails([](RunLayer& l) { l.topk_weights[5] = 0.75f; }));  // a weight that was not used
}

TEST(MoeCheck, PassesLayersOfEightBits) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const CheckResult result = RunLayer(dtype, moe::WeightFormat::fp8_block).check();
    EXPECT_TRUE(result.passed()) << dtype_name(dtype) << " " << result.largest_error_of_bound;
    EXPECT_GT(result.largest_error_of_bound, 0.0);
  }
}

// Of the first expert, which tokens take that are checked.
TEST(MoeCheck, FindsPlantedErrorsOfScales) {
  const auto fails = [](const std::function<void(RunLayer&)>& plant) {
    RunLayer layer(DType::bf16, moe::WeightFormat::fp8_block);
    plant(layer);
    return !layer.check().passed();
  };
  const auto row_of_blocks = [](float* scales) { std::swap_ranges(scales, scales + 3, scales + 3); };
  EXPECT_TRUE(fails([&](RunLayer& l) { row_of_blocks(l.scales(2)); }));                // the next rows' scales
  EXPECT_TRUE(fails([](RunLayer& l) { std::swap(l.scales(2)[0], l.scales(2)[1]); }));  // the next columns'
  EXPECT_TRUE(fails([](RunLayer& l) { std::swap_ranges(l.scales(2), l.scales(2) + 6, l.scales(2) + 6); }));  // up's
  EXPECT_TRUE(fails([](RunLayer& l) { std::swap(l.scales(3)[0], l.scales(3)[1]); }));
  EXPECT_TRUE(fails([](RunLayer& l) { l.scales(3)[5] = 0.0f; }));
}

TEST(MoeCheck, ATokenWithoutExpertsMustBeZero) {
  RunLayer layer(DType::bf16);
  layer.ids.assign(layer.ids.size(), 0);  // of another shard
  layer.run.inputs.topk_ids = layer.ids.data();
  EXPECT_EQ(layer.check().largest_error_of_bound, std::numeric_limits<double>::infinity());
  std::memset(layer.out.data(), 0, layer.out.size());
  EXPECT_TRUE(layer.check().passed());
}

TEST(MoeCheck, NothingCheckedIsNotPassed) { EXPECT_FALSE(CheckResult{}.passed()); }

TEST(NormalPattern, IsNormalRepeatsAndCanStartAnywhere) {
  const NormalPattern pattern(100'003, 5);
  std::vector<float> values(200'006);
  pattern.fill(DType::f32, values.data(), values.size(), 1.0f, 0);
  double sum = 0.0, squares = 0.0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    sum += values[i];
    squares += values[i] * values[i];
    ASSERT_EQ(values[i], values[i + pattern.size()]);
  }
  const auto count = static_cast<double>(pattern.size());
  EXPECT_NEAR(sum / count, 0.0, 5.0 / std::sqrt(count));
  EXPECT_NEAR(squares / count, 1.0, 10.0 / std::sqrt(count));
  float shifted = 0.0f;
  pattern.fill(DType::f32, &shifted, 1, 2.0f, pattern.size() + 41);
  EXPECT_EQ(shifted, 2.0f * values[41]);
}

}  // namespace
}  // namespace tessera::cli
