// The judge of `tessera bench moe`: passes what a layer computes, finds what is planted.
#include "moe_check.h"

#include <gtest/gtest.h>

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

moe::LayerConfig small_layer(DType dtype) {
  moe::LayerConfig config;
  config.hidden_size = kHidden;
  config.intermediate_size = kIntermediate;
  config.num_experts = kExperts;
  config.top_k = kTopK;
  config.dtype = dtype;
  config.first_expert = 3;
  return config;
}

/// A layer that has run; the test may change what it left.
struct RunLayer {
  explicit RunLayer(DType dtype)
      : config(small_layer(dtype)),
        gate_up(kExperts * 2 * kIntermediate * kHidden * dtype_size(dtype)),
        down(kExperts * kHidden * kIntermediate * dtype_size(dtype)),
        x(kTokens * kHidden * dtype_size(dtype)),
        out(x.size()),
        topk_weights(kTokens * kTopK, 0.5f) {
    const NormalPattern pattern(100'003, 1);
    pattern.fill(dtype, gate_up.data(), gate_up.size() / dtype_size(dtype), 0.1f, 0);
    pattern.fill(dtype, down.data(), down.size() / dtype_size(dtype), 0.1f, 31);
    pattern.fill(dtype, x.data(), x.size() / dtype_size(dtype), 1.0f, 17);
    for (int32_t slot = 0; slot < kTokens * kTopK; ++slot) ids.push_back(slot % 10);  // 0..2 and 9 are other shards'
    run.weights.gate_up = gate_up.data();
    run.weights.down = down.data();
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

  moe::LayerConfig config;
  Buffer<std::byte> gate_up, down, x, out;
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
