// The exact judge of layers: sums done by hand, agreement with the fp64 oracle, planted errors, what a GPU recorded.
#include "moe/judge/exact_layer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "moe/battery.h"
#include "moe/judge.h"
#include "moe/judge/oracle.h"
#include "moe/layer_data.h"
#include "tessera/core/error.h"
#include "unit/moe/exact_case.h"
#include "unit/moe/exact_record.h"

namespace tessera::testing {
namespace {

using moe::ExactLayer;

float value_of(uint16_t bits, DType dtype) { return dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits); }

TEST(ExactLayer, ByHand) {
  // H = I = 8, one token (3, 1, 0, ...), one expert: gate = relu(x0) = 3, up = x1 + 0.5, down doubles into column 5.
  ExactCase c(1);
  c.config = {};
  c.config.hidden_size = c.config.intermediate_size = 8;
  c.config.num_experts = c.config.top_k = 1;
  c.config.activation.kind = ActivationKind::relu;
  c.num_tokens = 1;
  const auto bits = [](float value) { return f32_to_bf16(value); };
  c.x.assign(8, 0);
  c.x[0] = bits(3.0f);
  c.x[1] = bits(1.0f);
  c.gate_up.assign(16 * 8, 0);
  c.gate_up[0] = bits(1.0f);
  c.gate_up[8 * 8 + 1] = bits(1.0f);
  c.gate_up_bias.assign(16, 0);
  c.gate_up_bias[8] = bits(0.5f);
  c.down.assign(64, 0);
  c.down[5 * 8] = bits(2.0f);
  c.down_bias.assign(8, 0);
  c.down_bias[4] = bits(-1.0f);
  c.shared_gate_up.clear();
  c.shared_down.clear();
  c.shared_weight.clear();
  c.map.clear();
  c.wide_ids.clear();
  c.ids = {0};
  c.topk_weights = {0.5f};
  c.topk_weights_dtype = DType::f32;
  const std::vector<uint16_t> out = ExactLayer(c.config, c.weights(), c.inputs()).out();
  EXPECT_EQ(out, (std::vector<uint16_t>{0, 0, 0, 0, bits(-0.5f), bits(4.5f), 0, 0}));
  c.ids = {1};  // no expert of this shard
  EXPECT_EQ(ExactLayer(c.config, c.weights(), c.inputs()).out(), std::vector<uint16_t>(8, 0));
}

TEST(ExactLayer, WithinTheOraclesBound) {
  int judged = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const ExactCase c(seed);
    if (c.config.activation.kind == ActivationKind::identity && !c.config.gated) continue;
    const auto out = ExactLayer(c.config, c.weights(), c.inputs()).out();
    const auto oracle = moe::oracle(c.config, c.weights(), c.inputs(), moe::kWgmmaAccumulatorUnit);
    for (size_t i = 0; i < out.size(); ++i) {
      // A shared expert in slices rounds each slice; subnormal results of fp16 round to 2^-25.
      const double slack = c.config.shared_intermediate_size == 0 ? 1.0 : 4.0;
      ASSERT_LE(std::fabs(value_of(out[i], c.config.dtype) - oracle.out[i]), slack * oracle.bound[i] + 0x1p-16)
          << c << " element " << i;
    }
    ++judged;
  }
  EXPECT_GT(judged, 40);
}

// The cases that every back end runs, as far as their bits need no device.
TEST(ExactLayer, TheBatteryIsRight) {
  size_t judged = 0;
  const std::vector<LayerCase> cases = battery_of(is_exact_on_host);
  for (const LayerCase& c : cases) {
    // A shared expert in slices rounds each slice: that is judged above.
    if (c.shared_intermediate > c.intermediate) continue;
    const LayerData data(c);
    const auto bits = ExactLayer(data.config(), data.weights(), data.inputs()).out();
    std::vector<std::byte> out(bits.size() * sizeof(uint16_t));
    if (!out.empty()) std::memcpy(out.data(), bits.data(), out.size());
    EXPECT_EQ(judge(c, out, data.reference(unit_of(c, kWgmmaSums)), kWgmmaSums), "") << c;
    ++judged;
  }
  EXPECT_GT(judged, cases.size() / 2);
}

TEST(ExactLayer, StagesAreTheWhole) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const ExactCase c(seed);
    ThreadPool threads(2);
    const ExactLayer layer(c.config, c.weights(), c.inputs()), shared(c.config, c.weights(), c.inputs(), &threads);
    const auto h = layer.intermediate(moe::exact_activation);
    EXPECT_EQ(layer.combined(layer.rows(h)), shared.out()) << c;
  }
}

TEST(ExactLayer, ActivationsThatNeedADeviceAreRefused) {
  const float one = 1.0f;
  float h = 0.0f;
  EXPECT_THROW(moe::exact_activation({ActivationKind::silu}, &one, &one, &h, 1), Error);
  const float gates[] = {-2.0f, -0.0f, std::nanf(""), 3.0f};
  const float ups[] = {-1.0f, -1.0f, 1.0f, 2.0f};
  float results[4];
  moe::exact_activation({ActivationKind::relu}, gates, ups, results, 4);
  EXPECT_EQ(std::bit_cast<uint32_t>(results[0]), 0x80000000u);  // +0 times -1
  EXPECT_EQ(results[2], 0.0f);
  EXPECT_EQ(results[3], 6.0f);
  moe::exact_activation({ActivationKind::relu_squared}, gates, nullptr, results, 4);
  EXPECT_EQ(results[3], 9.0f);
}

TEST(ExactLayer, Rounding) {
  EXPECT_EQ(moe::rounded_bits(1.0f + 0x1p-8f, DType::bf16), 0x3F80);
  EXPECT_EQ(moe::rounded_bits(1.0f + 0x1.8p-8f, DType::bf16), 0x3F81);
  EXPECT_EQ(moe::rounded_bits(65520.0f, DType::f16), 0x7C00);
  EXPECT_EQ(moe::rounded_bits(std::nanf(""), DType::f16), 0x7FFF);
  EXPECT_EQ(moe::rounded_bits(-std::nanf(""), DType::bf16), 0x7FFF);
}

// A layer whose gate, up and down are all at work, large enough for several instructions of K.
ExactCase layer_with_everything() {
  for (uint64_t seed = 1;; ++seed) {
    ExactCase c(seed);
    const moe::LayerConfig& l = c.config;
    if (l.gated && l.hidden_size >= 64 && l.intermediate_size >= 64 && l.num_experts > 2 && l.top_k > 1 &&
        !c.gate_up_bias.empty() && c.num_tokens > 8 && l.shared_intermediate_size == 0)
      return c;
  }
}

// The bits of values that are cut where they should be rounded, or rounded as they should.
std::vector<uint16_t> stored(const std::vector<float>& values, DType dtype, bool cut) {
  const uint32_t mask = dtype == DType::bf16 ? 0xFFFF0000u : 0xFFFFE000u;
  std::vector<uint16_t> bits;
  for (const float value : values) {
    const float kept = cut ? std::bit_cast<float>(std::bit_cast<uint32_t>(value) & mask) : value;
    bits.push_back(moe::rounded_bits(kept, dtype));
  }
  return bits;
}

// The outputs as an error would leave them are refused, and as they are accepted.
class PlantedErrors : public ::testing::Test {
 protected:
  std::vector<uint16_t> out_of(const ExactCase& c) const { return ExactLayer(c.config, c.weights(), c.inputs()).out(); }
  void expect_refused(const std::vector<uint16_t>& got) const {
    EXPECT_NE(difference_of("out", got, right_, case_.config.hidden_size), "") << case_;
  }
  // What the second product gives, before it is rounded.
  std::vector<float> row_sums(const ExactLayer& layer, const std::vector<uint16_t>& intermediate) const {
    const int64_t h = case_.config.hidden_size, width = case_.config.intermediate_size;
    const auto rules = moe::tensor_core_rules(moe::tensor_core_type(case_.config.dtype));
    std::vector<float> sums(static_cast<size_t>(layer.num_rows() * h));
    for (int64_t row = 0; row < layer.num_rows(); ++row) {
      const int64_t expert = layer.expert_of_row(row);
      if (expert < 0) continue;
      float* to = &sums[static_cast<size_t>(row * h)];
      moe::products(rules, {intermediate.data() + row * width, 1, width, nullptr},
                    {case_.down.data() + expert * h * width, h, width, nullptr}, width, to, h);
      for (int64_t c = 0; c < h && !case_.down_bias.empty(); ++c)
        to[c] += value_of(case_.down_bias[static_cast<size_t>(expert * h + c)], case_.config.dtype);
    }
    return sums;
  }
  // The weighted sums of the rows, before they are rounded.
  std::vector<float> out_sums(const ExactLayer& layer, const std::vector<uint16_t>& rows) const {
    const auto h = static_cast<size_t>(case_.config.hidden_size), k = static_cast<size_t>(case_.config.top_k);
    std::vector<float> sums(static_cast<size_t>(case_.num_tokens) * h);
    for (size_t row = 0; row < rows.size() / h; ++row) {
      if (layer.expert_of_row(static_cast<int64_t>(row)) < 0) continue;
      const float weight = case_.narrow_weights.empty() ? case_.topk_weights[row]
                                                        : value_of(case_.narrow_weights[row], case_.topk_weights_dtype);
      for (size_t c = 0; c < h; ++c) {
        float& sum = sums[row / k * h + c];
        sum = std::fma(weight, value_of(rows[row * h + c], case_.config.dtype), sum);
      }
    }
    return sums;
  }

  ExactCase case_ = layer_with_everything();
  std::vector<uint16_t> right_ = out_of(case_);
};

TEST_F(PlantedErrors, NoneIsAccepted) {
  EXPECT_EQ(difference_of("out", out_of(case_), right_, case_.config.hidden_size), "");
}

TEST_F(PlantedErrors, OneBit) {
  for (size_t i = 0; i < right_.size(); i += 7) {
    auto got = right_;
    got[i] ^= 1u;
    expect_refused(got);
  }
}

TEST_F(PlantedErrors, OneLostProduct) {
  // A weight that became zero; those of experts without tokens, or behind a closed ReLU, change nothing.
  const ExactLayer layer(case_.config, case_.weights(), case_.inputs());
  const auto right = layer.intermediate(moe::exact_activation);
  size_t lost = 0;
  for (size_t i = 0; i < case_.gate_up.size(); i += case_.gate_up.size() / 40) {
    if ((case_.gate_up[i] & 0x7FFFu) == 0) continue;
    ExactCase c = case_;
    c.gate_up[i] = 0;
    const ExactLayer other(c.config, c.weights(), c.inputs());
    lost += other.intermediate(moe::exact_activation) != right ? 1u : 0u;
  }
  EXPECT_GT(lost, 3u);
}

TEST_F(PlantedErrors, OrderOfK) {
  // Two instructions' worth of K change places in tokens and weights: the same products, summed in another order.
  ExactCase c = case_;
  const auto h = static_cast<ptrdiff_t>(c.config.hidden_size);
  for (auto* values : {&c.x, &c.gate_up}) {
    for (auto row = values->begin(); row != values->end(); row += h) std::swap_ranges(row, row + 16, row + 32);
  }
  const ExactLayer other(c.config, c.weights(), c.inputs());
  const ExactLayer layer(case_.config, case_.weights(), case_.inputs());
  EXPECT_NE(difference_of("intermediate", other.intermediate(moe::exact_activation),
                          layer.intermediate(moe::exact_activation), case_.config.intermediate_size),
            "");
}

TEST_F(PlantedErrors, AWrongRounding) {
  // Cut instead of rounded, at each of the three places.
  const DType dtype = case_.config.dtype;
  const ExactLayer layer(case_.config, case_.weights(), case_.inputs());
  const auto cut_activation = [&](const Activation& a, const float* gate, const float* up, float* h, size_t count) {
    moe::exact_activation(a, gate, up, h, count);
    const std::vector<uint16_t> bits = stored({h, h + count}, dtype, true);
    for (size_t i = 0; i < count; ++i) h[i] = value_of(bits[i], dtype);
  };
  expect_refused(layer.out(cut_activation));
  const std::vector<uint16_t> intermediate = layer.intermediate(moe::exact_activation);
  const std::vector<float> of_rows = row_sums(layer, intermediate);
  const std::vector<uint16_t> rows = stored(of_rows, dtype, false);
  ASSERT_EQ(rows, layer.rows(intermediate));
  expect_refused(layer.combined(stored(of_rows, dtype, true)));
  const std::vector<float> of_out = out_sums(layer, rows);
  ASSERT_EQ(stored(of_out, dtype, false), right_);
  expect_refused(stored(of_out, dtype, true));
}

TEST_F(PlantedErrors, ANeighboursElement) {
  auto got = right_;
  size_t place = 0;
  while (got[place] == got[place + 1]) ++place;
  got[place] = got[place + 1];
  expect_refused(got);
  ExactCase c = case_;  // an expert's bias read one element too far
  std::rotate(c.gate_up_bias.begin(), c.gate_up_bias.begin() + 1, c.gate_up_bias.end());
  expect_refused(out_of(c));
}

TEST_F(PlantedErrors, GateAndUpSwappedAndAWrongExpert) {
  ExactCase c = case_;
  c.config.gate_up_order =
      c.config.gate_up_order == moe::GateUpOrder::up_first ? moe::GateUpOrder::gate_first : moe::GateUpOrder::up_first;
  expect_refused(out_of(c));
  c = case_;
  for (int32_t& entry : c.map) entry = (entry + 1) % c.config.num_experts;
  c.config.first_expert += 1;
  expect_refused(out_of(c));
}

// Whole outputs that a GPU gave, bit for bit, without one.
TEST(ExactRecord, TheModelGivesWhatAGpuGave) {
  std::ifstream file(std::string(TESSERA_SOURCE_DIR) + "/" + kExactRecordFile);
  ASSERT_TRUE(file) << kExactRecordFile << " is written by gpu_exact_probe --record on a GPU";
  const std::vector<ExactRecord> records = read_exact_records(file);
  EXPECT_GE(records.size(), static_cast<size_t>(kNumRecordedLayers));
  for (const ExactRecord& record : records) {
    const ExactCase c(record.seed);
    ASSERT_EQ(c.checksum(), record.checksum) << "not the inputs that were recorded: " << c;
    const ExactLayer layer(c.config, c.weights(), c.inputs());
    EXPECT_EQ(difference_of("out", layer.out(), record.out, c.config.hidden_size), "") << c;
  }
}

TEST(ExactRecord, LinesAreReadAsWritten) {
  const ExactRecord record{17, 0xABCDEF0123456789ull, {0x3F80, 0x0000, 0xFFFF, 0x00A5}};
  std::istringstream file("# a GPU\n" + exact_record_line(record));
  const std::vector<ExactRecord> read = read_exact_records(file);
  ASSERT_EQ(read.size(), 1u);
  EXPECT_EQ(read[0].seed, 17u);
  EXPECT_EQ(read[0].checksum, record.checksum);
  EXPECT_EQ(read[0].out, record.out);
  std::istringstream broken("17 abcdef\n");
  EXPECT_THROW(read_exact_records(broken), Error);
}

}  // namespace
}  // namespace tessera::testing
