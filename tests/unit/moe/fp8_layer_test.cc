// What the battery does not ask of layers with e4m3 weights: which scale every block has, what is refused, and that
// nothing of a token depends on others.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "moe/judge/exact_layer.h"
#include "moe/run_cpu.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"
#include "tessera/moe/prepare_weights.h"
#include "tessera/moe/quantize.h"
#include "unit/error_message.h"
#include "unit/moe/fp8_shard.h"

namespace tessera::testing {
namespace {

using moe::GateUpOrder;

constexpr auto kFp8Weights = moe::WeightFormat::fp8_block;

LayerCase fp8_case(LayerCase c) {
  c.format = kFp8Weights;
  return c;
}

// One weight that is 1, all others 0, and scales that are all different: what comes out names the scale.
class OneWeight {
 public:
  static constexpr int32_t kHidden = 272, kWidth = 208, kExperts = 3;

  OneWeight(GateUpOrder order, bool gated, moe::ScaleOffsets offsets = {})
      : gated_(gated), order_(order), offsets_(offsets) {
    config_.hidden_size = kHidden;
    config_.intermediate_size = kWidth;
    config_.num_experts = kExperts;
    config_.top_k = 1;
    config_.dtype = DType::f32;
    config_.gated = gated;
    config_.activation.kind = ActivationKind::identity;
    config_.gate_up_order = order;
    config_.weight_format = kFp8Weights;
    config_.scale_offsets = offsets;
    gate_up_ = Buffer<uint8_t>(size_t{kExperts} * parts() * kWidth * kHidden);
    down_ = Buffer<uint8_t>(size_t{kExperts} * kWidth * kHidden);
    bias_ = Buffer<float>(size_t{kExperts} * parts() * kWidth);
    scales_ = Buffer<float>(size_t{kExperts} * parts() * static_cast<size_t>(block_rows()) * 3);
    down_scales_ = Buffer<float>(size_t{kExperts} * 3 * static_cast<size_t>(down_block_columns()));
    for (size_t i = 0; i < scales_.size(); ++i) scales_[i] = 1.0f + static_cast<float>(i);
    for (size_t i = 0; i < down_scales_.size(); ++i) down_scales_[i] = 1.0f + static_cast<float>(i);
  }

  // Element (row, column) of gate or up, and (out, row) of down, of an expert. The other of gate and up is 1.
  void expect(int64_t expert, bool up, int64_t row, int64_t column, int64_t out) {
    std::memset(gate_up_.data(), 0, gate_up_.size());
    std::memset(down_.data(), 0, down_.size());
    std::fill(bias_.begin(), bias_.end(), 0.0f);
    const auto row_of = [&](bool of_up) {
      const int64_t in_expert = !gated_ ? row : of_up ? up_row(order_, row, kWidth) : gate_row(order_, row, kWidth);
      return static_cast<size_t>(expert * static_cast<int64_t>(parts()) * kWidth + in_expert);
    };
    gate_up_[row_of(up) * kHidden + static_cast<size_t>(column)] = f32_to_e4m3(1.0f);
    if (gated_) bias_[row_of(!up)] = 1.0f;
    down_[static_cast<size_t>((expert * kHidden + out) * kWidth + row)] = f32_to_e4m3(1.0f);
    Buffer<float> x(kHidden);
    std::fill(x.begin(), x.end(), 0.0f);
    x[static_cast<size_t>(column)] = 448.0f;
    const int64_t part = expert * static_cast<int64_t>(parts()) + (up ? 1 : 0);
    const int64_t block_row = (row + (up ? offsets_.up : offsets_.gate)) / 128;
    const float scale = scales_[static_cast<size_t>((part * block_rows() + block_row) * 3 + column / 128)];
    const float down_scale = down_scales_[static_cast<size_t>((expert * 3 + out / 128) * down_block_columns() +
                                                              (row + offsets_.down) / 128)];
    const auto id = static_cast<int32_t>(expert);
    const float weight = 1.0f;
    moe::LayerWeights weights{gate_up_.data(), down_.data(), gated_ ? bias_.data() : nullptr};
    weights.gate_up_scale = scales_.data();
    weights.down_scale = down_scales_.data();
    Buffer<float> result(kHidden);
    const moe::LayerInputs inputs{x.data(), &id, false, &weight, result.data(), 1};
    const moe::CpuLayer layer(config_, weights, 1);
    Buffer<std::byte> workspace(layer.workspace_bytes(1));
    layer.run(inputs, workspace.data(), workspace.size());
    const auto oracle = moe::oracle(config_, weights, inputs);
    const double expected = 448.0 * static_cast<double>(scale) * static_cast<double>(down_scale);
    for (size_t i = 0; i < kHidden; ++i) {
      const double right = static_cast<int64_t>(i) == out ? expected : 0.0;
      ASSERT_NEAR(oracle.out[i], right, 1e-6 * right) << row << " " << column << " " << i;
      ASSERT_NEAR(static_cast<double>(result[i]), right, 1e-6 * right) << row << " " << column << " " << i;
    }
  }

 private:
  size_t parts() const { return gated_ ? 2 : 1; }
  int64_t block_rows() const { return (kWidth + std::max(offsets_.gate, offsets_.up) + 127) / 128; }
  int64_t down_block_columns() const { return (kWidth + offsets_.down + 127) / 128; }

  bool gated_;
  GateUpOrder order_;
  moe::ScaleOffsets offsets_;
  moe::LayerConfig config_;
  Buffer<uint8_t> gate_up_, down_;
  Buffer<float> bias_, scales_, down_scales_;
};

TEST(Fp8Layer, EveryBlockHasItsScale) {
  for (const GateUpOrder order : {GateUpOrder::gate_first, GateUpOrder::interleaved, GateUpOrder::up_first}) {
    for (const bool gated : {true, false}) {
      if (!gated && order != GateUpOrder::gate_first) continue;
      // The last three: a shard that begins inside a block, up rows counted through after gate's, all different.
      for (const moe::ScaleOffsets offsets : {moe::ScaleOffsets{}, {64, 64, 64}, {0, 80, 0}, {112, 16, 127}}) {
        if (!gated && offsets.up != 0) continue;
        OneWeight layer(order, gated, offsets);
        for (const bool up : {false, true}) {
          if (up && !gated) continue;
          layer.expect(0, up, 0, 0, 0);
          layer.expect(1, up, 127, 128, 127);
          layer.expect(1, up, 128, 127, 128);
          layer.expect(2, up, 207, 271, 271);
          layer.expect(2, up, 130, 5, 255);
          layer.expect(0, up, 64, 256, 256);
          layer.expect(2, up, 47, 17, 130);
          layer.expect(1, up, 48, 200, 16);
        }
      }
      if (!gated) OneWeight(order, gated, {48, 0, 48}).expect(2, false, 80, 130, 130);
    }
  }
}

// The halves of a block, each a layer of its own: what they are multiplied with is the whole's.
TEST(Fp8Layer, AShardThatBeginsInsideABlockHasTheWholesBits) {
  constexpr int64_t kShard = 64;
  LayerCase c = fp8_case({.hidden = 272, .intermediate = 192, .experts = 3, .tokens = 9});
  c.activation = {ActivationKind::relu};
  for (const auto order : {GateUpOrder::gate_first, GateUpOrder::up_first}) {
    c.order = order;
    const LayerData whole(c);
    const auto all =
        moe::ExactLayer(whole.config(), whole.weights(), whole.inputs()).activations(moe::exact_activation);
    for (const int64_t begin : {int64_t{0}, kShard, 2 * kShard}) {
      Shard shard(whole, begin, kShard);
      const auto h = moe::ExactLayer(shard.config, shard.weights, whole.inputs()).activations(moe::exact_activation);
      for (size_t i = 0; i < h.size(); ++i)
        ASSERT_EQ(h[i], all[i / kShard * 192 + static_cast<size_t>(begin) + i % kShard]) << begin << " " << i;
      const auto out = moe::oracle(shard.config, shard.weights, whole.inputs());
      EXPECT_EQ(judge(shard.layer_case, whole.run(moe::CpuLayer(shard.config, shard.weights, 1)), out, kCpuSums), "");
    }
  }
}

TEST(Fp8Layer, SameBitsForAnyBatchOrderAndThreads) {
  const LayerData data(fp8_case({.hidden = 144, .intermediate = 208, .experts = 5, .top_k = 3, .tokens = 150}));
  const auto all = data.run(1);
  EXPECT_EQ(data.run(2), all);
  EXPECT_EQ(data.run(3), all);
  const moe::CpuLayer layer(data.config(), data.weights(), 2);
  const size_t row = 144 * 2;
  for (const int32_t first : {0, 1, 77, 149}) {
    for (const int32_t count : {1, 20}) {
      if (first + count > 150) continue;
      GuardedBytes workspace(layer.workspace_bytes(count)), out(static_cast<size_t>(count) * row);
      moe::LayerInputs inputs = data.inputs(out.data());
      inputs.x = data.x().data() + static_cast<size_t>(first) * row;
      inputs.topk_ids = static_cast<const int32_t*>(inputs.topk_ids) + 3 * first;
      inputs.topk_weights = static_cast<const float*>(inputs.topk_weights) + 3 * first;
      inputs.num_tokens = count;
      layer.run(inputs, workspace.data(), workspace.size());
      EXPECT_EQ(std::memcmp(out.data(), all.data() + static_cast<size_t>(first) * row, out.size()), 0)
          << first << " " << count;
    }
  }
}

// Weights and scales of an expert that nobody chose may be anything.
TEST(Fp8Layer, NanOfAnUnroutedExpertReachesNobody) {
  LayerData data(fp8_case({.hidden = 144, .intermediate = 208, .experts = 4, .tokens = 30, .dtype = DType::bf16}));
  std::vector<int64_t> ids = data.ids();
  for (int64_t& id : ids) id = id == 2 ? 3 : id;
  data.set_ids(ids);
  const auto right = data.run();
  moe::LayerWeights weights = data.weights();
  Buffer<uint8_t> gate_up(data.gate_up().size()), down(data.down().size());
  Buffer<float> scales(data.gate_up_scale().size() / 4), down_scales(data.down_scale().size() / 4);
  std::memcpy(gate_up.data(), data.gate_up().data(), gate_up.size());
  std::memcpy(down.data(), data.down().data(), down.size());
  std::memcpy(scales.data(), weights.gate_up_scale, scales.size() * 4);
  std::memcpy(down_scales.data(), weights.down_scale, down_scales.size() * 4);
  std::memset(gate_up.data() + gate_up.size() / 2, 0xFF, gate_up.size() / 4);
  std::memset(down.data() + down.size() / 2, 0x7F, down.size() / 4);
  std::memset(scales.data() + scales.size() / 2, 0xFF, scales.size());
  std::memset(down_scales.data() + down_scales.size() / 2, 0xFF, down_scales.size());
  weights.gate_up = gate_up.data();
  weights.down = down.data();
  weights.gate_up_scale = scales.data();
  weights.down_scale = down_scales.data();
  EXPECT_EQ(data.run(moe::CpuLayer(data.config(), weights, 2)), right);
  EXPECT_EQ(judge(data.layer_case(), right, data.reference(), kCpuSums), "");
  ids[0] = 2;  // and now somebody chose it
  data.set_ids(ids);
  EXPECT_NE(data.run(moe::CpuLayer(data.config(), weights, 2)), right);
}

TEST(Fp8Layer, ANanTokenSpoilsItselfAlone) {
  LayerData data(fp8_case({.hidden = 144, .intermediate = 80, .experts = 3, .tokens = 9, .dtype = DType::f32}));
  const auto right = data.values(data.run());
  Buffer<float> x(data.x().size() / 4);
  std::memcpy(x.data(), data.x().data(), data.x().size());
  x[4 * 144 + 143] = std::numeric_limits<float>::quiet_NaN();
  x[6 * 144] = std::numeric_limits<float>::infinity();
  const moe::CpuLayer layer(data.config(), data.weights(), 1);
  GuardedBytes workspace(layer.workspace_bytes(9)), out(data.out_bytes());
  moe::LayerInputs inputs = data.inputs(out.data());
  inputs.x = x.data();
  layer.run(inputs, workspace.data(), workspace.size());
  const auto got = data.values({out.data(), out.data() + out.size()});
  for (size_t i = 0; i < got.size(); ++i) {
    if (i / 144 == 4 || i / 144 == 6) {
      EXPECT_TRUE(std::isnan(got[i])) << i;
    } else {
      EXPECT_EQ(got[i], right[i]) << i;
    }
  }
}

// Codes and scales of tokens as a caller made them: by its own scales, which are no recipe's.
struct GivenTokens {
  Buffer<uint8_t> codes;
  std::vector<float> scales;

  explicit GivenTokens(const LayerData& data, float factor = 1.0f) {
    const LayerCase& c = data.layer_case();
    codes = Buffer<uint8_t>(static_cast<size_t>(c.tokens) * static_cast<size_t>(c.hidden));
    scales.resize(static_cast<size_t>(c.tokens) * static_cast<size_t>((c.hidden + 127) / 128));
    moe::quantize_rows(data.x().data(), c.dtype, {c.tokens, c.hidden}, codes.data(), scales.data());
    for (float& scale : scales) scale *= factor;
  }
  moe::LayerInputs inputs(const LayerData& data, void* out = nullptr) const {
    moe::LayerInputs inputs = data.inputs(out);
    inputs.x = codes.data();
    inputs.x_scale = scales.data();
    return inputs;
  }
};

TEST(Fp8Layer, TokensThatAreQuantisedAreMultipliedAsTheyAre) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    LayerCase c = find_case("fp8_map_shared_f32");
    c.dtype = dtype;
    const LayerData data(c);
    const moe::CpuLayer layer(data.config(), data.weights(), 2);
    GuardedBytes workspace(layer.workspace_bytes(c.tokens)), out(data.out_bytes());
    const auto run = [&](const GivenTokens& given) {
      out.poison();
      layer.run(given.inputs(data, out.data()), workspace.data(), workspace.size());
      EXPECT_TRUE(out.guards_intact() && workspace.guards_intact());
      return std::vector<std::byte>(out.data(), out.data() + out.size());
    };
    EXPECT_EQ(run(GivenTokens(data)), data.run(layer)) << "the recipe's are what the layer makes of x";
    const GivenTokens others(data, 1.625f);
    const auto got = run(others);
    EXPECT_EQ(judge(c, got, moe::oracle(data.config(), data.weights(), others.inputs(data)), kCpuSums), "");
    EXPECT_NE(judge(c, got, data.reference(), kCpuSums), "") << "another scale is another token";
  }
}

TEST(Fp8Layer, TokensThatAreQuantisedAreTheModelsToo) {
  const LayerData data(find_case("fp8_integers_gate_first_1_bf16"));
  const GivenTokens recipe(data), others(data, 0.75f);
  const auto exact = [&](const moe::LayerInputs& inputs) {
    return moe::ExactLayer(data.config(), data.weights(), inputs).out();
  };
  EXPECT_EQ(exact(recipe.inputs(data)), exact(data.inputs()));
  const auto tokens = moe::ExactLayer(data.config(), data.weights(), others.inputs(data)).quantized_tokens();
  EXPECT_EQ(tokens.scales, others.scales);
  EXPECT_TRUE(std::equal(tokens.codes.begin(), tokens.codes.end(), others.codes.begin()));
}

// Public reports of block-scaled layers: scales next to nothing, 0 itself, sizes that are no blocks.
TEST(Fp8Layer, ScalesNextToNothingAreFiniteAndRight) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const float scale : {0.0f, 1e-38f, 1e-23f, 1e-8f}) {
      const LayerData data(fp8_case({.hidden = 144, .intermediate = 208, .experts = 2, .tokens = 9, .dtype = dtype}));
      Buffer<float> scales(data.gate_up_scale().size() / 4), down(data.down_scale().size() / 4);
      std::fill(scales.begin(), scales.end(), scale);
      for (const bool both : {false, true}) {
        std::fill(down.begin(), down.end(), both ? scale : 1.0f);
        moe::LayerWeights weights = data.weights();
        weights.gate_up_scale = scales.data();
        weights.down_scale = down.data();
        const auto out = data.run(moe::CpuLayer(data.config(), weights, 1));
        for (const float value : data.values(out)) ASSERT_TRUE(std::isfinite(value));
        EXPECT_EQ(judge(data.layer_case(), out, moe::oracle(data.config(), weights, data.inputs()), kCpuSums), "")
            << scale << " " << both;
      }
    }
  }
}

class Fp8BadInput : public ::testing::Test {
 protected:
  std::string create(const std::function<void(moe::LayerConfig&, moe::LayerWeights&)>& change) const {
    moe::LayerConfig config = data_.config();
    moe::LayerWeights weights = data_.weights();
    change(config, weights);
    return error_of([&] { moe::CpuLayer(config, weights, 1); });
  }
  const LayerData data_{fp8_case({.hidden = 144, .intermediate = 80, .experts = 2, .tokens = 3})};
  const LayerData dense_{{.hidden = 144, .intermediate = 80, .experts = 2, .tokens = 3}};
};

TEST_F(Fp8BadInput, IsRefusedByName) {
  using Config = moe::LayerConfig;
  using Weights = moe::LayerWeights;
  EXPECT_EQ(create([](Config&, Weights&) {}), "no error");
  EXPECT_EQ(create([](Config& c, Weights&) { c.hidden_size = 136; }),
            "hidden_size: got 136, expected a positive multiple of 16 for weights of format fp8-block");
  EXPECT_EQ(create([](Config& c, Weights&) { c.intermediate_size = 88; }),
            "intermediate_size: got 88, expected a positive multiple of 16 for weights of format fp8-block");
  EXPECT_EQ(create([](Config& c, Weights& w) {
              c.shared_intermediate_size = 8;
              w.shared_gate_up = w.gate_up;
              w.shared_down = w.down;
            }),
            "shared_intermediate_size: got 8, expected a positive multiple of 16 for weights of format fp8-block");
  EXPECT_EQ(create([](Config&, Weights& w) { w.gate_up_scale = nullptr; }),
            "gate_up scale: got a null pointer, expected host memory");
  EXPECT_EQ(create([](Config&, Weights& w) { w.down_scale = nullptr; }),
            "down scale: got a null pointer, expected host memory");
  EXPECT_EQ(create([](Config&, Weights& w) { w.down_scale = static_cast<const float*>(w.down_scale) + 1; }),
            "down scale: got a misaligned pointer, expected 16-byte alignment");
  EXPECT_EQ(create([](Config&, Weights& w) { w.shared_down_scale = w.down_scale; }),
            "shared down scale: got a pointer, expected null: weights of format fp8-block here have no such scales");
  EXPECT_EQ(create([](Config& c, Weights& w) {
              c.shared_intermediate_size = 16;
              w.shared_gate_up = w.gate_up;
              w.shared_down = w.down;
            }),
            "shared gate_up scale: got a null pointer, expected host memory");
}

TEST_F(Fp8BadInput, OffsetsOfScalesAreRefusedByName) {
  const auto with = [&](moe::ScaleOffsets offsets) {
    return create([&](moe::LayerConfig& c, moe::LayerWeights&) { c.scale_offsets = offsets; });
  };
  EXPECT_EQ(with({128, 0, 0}), "gate scale offset: got 128, expected 0..127");
  EXPECT_EQ(with({0, -1, 0}), "up scale offset: got -1, expected 0..127");
  EXPECT_EQ(with({0, 0, 200}), "down scale offset: got 200, expected 0..127");
  EXPECT_EQ(create([](moe::LayerConfig& c, moe::LayerWeights&) {
              c.gated = false;
              c.scale_offsets.up = 16;
            }),
            "up scale offset: got 16, expected 0: without a gate, that of gate is gate_up's");
  moe::LayerConfig config = dense_.config();
  config.scale_offsets.down = 16;
  EXPECT_EQ(error_of([&] { moe::CpuLayer(config, dense_.weights(), 1); }),
            "down scale offset: got 16, expected 0: weights of format dense have no scales");
}

TEST_F(Fp8BadInput, DenseLayersTakeNoScales) {
  moe::LayerWeights weights = dense_.weights();
  weights.gate_up_scale = data_.weights().gate_up_scale;
  EXPECT_EQ(error_of([&] { moe::CpuLayer(dense_.config(), weights, 1); }),
            "gate_up scale: got a pointer, expected null: weights of format dense here have no such scales");
}

TEST_F(Fp8BadInput, OverlapsWithScalesAreRefused) {
  // Memory for both: out is longer than the scales, and what lies behind them may be anything.
  GuardedBytes both(std::max(data_.out_bytes(), data_.down_scale().size()));
  std::copy_n(data_.down_scale().data(), data_.down_scale().size(), both.data());
  moe::LayerWeights weights = data_.weights();
  weights.down_scale = both.data();
  const moe::CpuLayer layer(data_.config(), weights, 1);
  GuardedBytes workspace(layer.workspace_bytes(3));
  moe::LayerInputs inputs = data_.inputs(both.data());
  EXPECT_EQ(error_of([&] { layer.run(inputs, workspace.data(), workspace.size()); }),
            "out: got memory that overlaps the down scale, expected memory of its own");
}

TEST_F(Fp8BadInput, ScalesOfTokensAreRefusedByName) {
  alignas(16) float scales[3 * 2 + 1] = {};
  GuardedBytes out(data_.out_bytes());
  const auto run = [&](const LayerData& data, const float* x_scale, void* to) {
    const moe::CpuLayer layer(data.config(), data.weights(), 1);
    GuardedBytes workspace(layer.workspace_bytes(3));
    moe::LayerInputs inputs = data.inputs(to);
    inputs.x_scale = x_scale;
    return error_of([&] { layer.run(inputs, workspace.data(), workspace.size()); });
  };
  EXPECT_EQ(run(data_, scales, out.data()), "no error") << "x has more bytes than codes need";
  EXPECT_EQ(run(dense_, scales, out.data()),
            "x_scale: got a pointer, expected null: with weights of format dense x is not quantised");
  const auto* odd = reinterpret_cast<const float*>(reinterpret_cast<const std::byte*>(scales) + 2);
  EXPECT_EQ(run(data_, odd, out.data()), "x_scale: got a misaligned pointer, expected 4-byte alignment");
  const auto* within = reinterpret_cast<const float*>(out.data() + out.size() - 16);
  EXPECT_EQ(run(data_, within, out.data()), "out: got memory that overlaps x_scale, expected memory of its own");
}

TEST_F(Fp8BadInput, TheyAreNotTransposed) {
  EXPECT_EQ(error_of([&] { moe::prepare_weights(data_.config(), {}, {}); }),
            "weight_format: got fp8-block, expected dense: only such weights are transposed");
}

}  // namespace
}  // namespace tessera::testing
