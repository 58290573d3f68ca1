// Errors as kernels make them, planted: the judge refuses each, in every type.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>

#include "moe/battery.h"
#include "tessera/moe/cpu_layer.h"

namespace tessera::testing {
namespace {

class PlantedError : public ::testing::TestWithParam<DType> {
 protected:
  static LayerCase layer_case(DType dtype) {
    return {.hidden = 256, .intermediate = 64, .experts = 8, .tokens = 70, .dtype = dtype, .bias = true};
  }

  /// Empty if the judge of a GPU's sums, which has more room, accepts the output.
  std::string verdict(const std::vector<std::byte>& out) const {
    const std::string problem = judge(case_, out, wide_reference_, kWgmmaSums);
    EXPECT_TRUE(problem.empty() || !judge(case_, out, reference_, kCpuSums).empty()) << "the CPU's has less";
    return problem;
  }

  /// What a layer gives that was told something else.
  std::vector<std::byte> out_of(const std::function<void(moe::LayerConfig&, moe::LayerWeights&)>& change) const {
    moe::LayerConfig config = data_.config();
    moe::LayerWeights weights = data_.weights();
    change(config, weights);
    return data_.run(moe::CpuLayer(config, weights, 1));
  }

  size_t element() const { return dtype_size(case_.dtype); }
  size_t row() const { return static_cast<size_t>(case_.hidden) * element(); }

  /// Made once a type; a test may change its copy of the data.
  struct Right {
    explicit Right(DType dtype) : data(layer_case(dtype)) {}
    LayerData data;
    moe::OracleResult reference = data.reference(kCpuSums.accumulator_unit);
    moe::OracleResult wide_reference = data.reference(kWgmmaSums.accumulator_unit);
    std::vector<std::byte> out = data.run();
  };
  static const Right& right(DType dtype) {
    static const std::array<Right, 3> all = {Right(DType::f32), Right(DType::f16), Right(DType::bf16)};
    return all[static_cast<size_t>(dtype)];
  }

  const LayerCase case_ = layer_case(GetParam());
  LayerData data_{case_};
  const moe::OracleResult& reference_ = right(GetParam()).reference;
  const moe::OracleResult& wide_reference_ = right(GetParam()).wide_reference;
  const std::vector<std::byte>& right_ = right(GetParam()).out;
};

TEST_P(PlantedError, NoneIsAccepted) {
  EXPECT_EQ(verdict(right_), "");
  EXPECT_EQ(judge(case_, right_, reference_, kCpuSums), "");
}

TEST_P(PlantedError, AWrongExpert) {
  std::vector<int64_t> ids = data_.ids();
  ids[9] = (ids[9] + 1) % case_.experts == ids[8] ? (ids[9] + 2) % case_.experts : (ids[9] + 1) % case_.experts;
  data_.set_ids(ids);
  EXPECT_NE(verdict(data_.run()), "") << "one slot of one token";
  EXPECT_NE(verdict(out_of([](moe::LayerConfig& config, moe::LayerWeights&) { config.first_expert = 1; })), "");
}

TEST_P(PlantedError, ADroppedRow) {
  std::vector<int64_t> ids = data_.ids();
  ids[9] = -1;
  data_.set_ids(ids);
  EXPECT_NE(verdict(data_.run()), "");
}

TEST_P(PlantedError, ADroppedExpert) {
  std::vector<int64_t> ids = data_.ids();
  const int64_t dropped = ids[9];
  for (int64_t& id : ids) id = id == dropped ? -1 : id;
  data_.set_ids(ids);
  EXPECT_NE(verdict(data_.run()), "");
}

TEST_P(PlantedError, NoBias) {
  EXPECT_NE(verdict(out_of([](moe::LayerConfig&, moe::LayerWeights& w) { w.gate_up_bias = nullptr; })), "");
  EXPECT_NE(verdict(out_of([](moe::LayerConfig&, moe::LayerWeights& w) { w.down_bias = nullptr; })), "");
}

TEST_P(PlantedError, GateAndUpSwapped) {
  EXPECT_NE(
      verdict(out_of([](moe::LayerConfig& c, moe::LayerWeights&) { c.gate_up_order = moe::GateUpOrder::up_first; })),
      "");
}

TEST_P(PlantedError, AnotherActivation) {
  EXPECT_NE(
      verdict(out_of([](moe::LayerConfig& c, moe::LayerWeights&) { c.activation = {ActivationKind::gelu_tanh}; })), "");
}

TEST_P(PlantedError, ANeighboursRow) {
  auto shifted = right_;  // one row comes from the token behind it
  std::memcpy(&shifted[4 * row()], &right_[5 * row()], row());
  EXPECT_NE(verdict(shifted), "");
  auto swapped = right_;
  const auto begin = swapped.begin();
  std::swap_ranges(begin, begin + static_cast<std::ptrdiff_t>(row()), begin + static_cast<std::ptrdiff_t>(row()));
  EXPECT_NE(verdict(swapped), "");
}

TEST_P(PlantedError, AWrongPatch) {
  auto patched = right_;  // 32 rows x 128 columns come from the columns beside them
  for (size_t r = 32; r < 64; ++r)
    std::memcpy(&patched[r * row() + 128 * element()], &patched[r * row()], 128 * element());
  EXPECT_NE(verdict(patched), "");
}

TEST_P(PlantedError, NothingWrittenOrZeros) {
  auto poisoned = right_;
  std::memset(&poisoned[77 * element()], 0xFF, element());
  const std::string problem = verdict(poisoned);
  EXPECT_EQ(problem.find("1 of 17920 elements, the worst of them token 0 column 77: got "), 0u) << problem;
  EXPECT_NE(verdict(std::vector<std::byte>(right_.size())), "");
  EXPECT_NE(verdict({right_.begin(), right_.end() - static_cast<std::ptrdiff_t>(row())}), "") << "a row too few";
}

TEST_P(PlantedError, AnotherLayersOutput) {
  const LayerData other(case_, 2);
  EXPECT_NE(judge(case_, right_, other.reference(), kCpuSums), "");
}

// The limit of a row sees what no single element shows: all of them off by nearly what each may be.
TEST_P(PlantedError, ARowThatIsOffEverywhere) {
  std::vector<float> rows = values_of(right_, case_.dtype);
  for (size_t i = 0; i < 256; ++i)
    rows[i] = static_cast<float>(reference_.out[i] + (i % 2 == 0 ? 0.9 : -0.9) * reference_.bound[i]);
  for (const Sums& sums : {kCpuSums, kWgmmaSums}) {
    const std::string problem = judge_rows(case_, rows, reference_, sums);
    EXPECT_EQ(problem.find("token 0: relative error "), 0u) << problem;
  }
}

TEST_P(PlantedError, TheWorstElementIsNamed) {
  std::vector<float> rows = values_of(right_, case_.dtype);
  rows[300] += static_cast<float>(3 * reference_.bound[300]);
  rows[777] += static_cast<float>(50 * reference_.bound[777]);
  const std::string problem = judge_rows(case_, rows, reference_, kCpuSums);
  EXPECT_EQ(problem.find("2 of 17920 elements, the worst of them token 3 column 9: got "), 0u) << problem;
}

TEST_P(PlantedError, NotPlusZero) {
  LayerCase c = case_;
  c.routing = "none";
  const LayerData data(c);
  auto out = data.run();
  ASSERT_EQ(judge(c, out, data.reference(), kCpuSums), "");
  out[out.size() - 1] = std::byte{0x80};  // little-endian: the sign
  EXPECT_NE(judge(c, out, data.reference(), kCpuSums), "") << "-0";
}

TEST_P(PlantedError, OneUnitOfAnInteger) {
  const LayerCase c{.tokens = 9, .dtype = GetParam(), .activation = {ActivationKind::identity}, .integers = true};
  const LayerData data(c);
  const auto reference = data.reference();
  auto out = data.run();
  ASSERT_EQ(judge(c, out, reference, kCpuSums), "");
  EXPECT_GT(std::count_if(reference.out.begin(), reference.out.end(), [](double v) { return v != 0.0; }), 100);
  const auto place =
      static_cast<size_t>(std::find_if(reference.out.begin(), reference.out.end(), [](double v) { return v != 0.0; }) -
                          reference.out.begin());
  out[place * element()] ^= std::byte{1};  // little-endian: the last place of the significand
  const std::string problem = judge(c, out, reference, kCpuSums);
  EXPECT_NE(problem, "");
}

// Of e4m3 weights: what reads another scale than its block's, or loses a block.
class PlantedFp8Error : public ::testing::TestWithParam<DType> {
 protected:
  PlantedFp8Error()
      : fp8_(fp8_case(GetParam())), fp8_reference_(fp8_.reference(unit_of(fp8_.layer_case(), kWgmmaSums))) {}

  static LayerCase fp8_case(DType dtype) {
    LayerCase c{.hidden = 272, .intermediate = 208, .experts = 4, .tokens = 40, .dtype = dtype};
    c.format = moe::WeightFormat::fp8_block;
    return c;
  }
  std::string fp8_verdict(const std::vector<std::byte>& out) const {
    return judge(fp8_.layer_case(), out, fp8_reference_, kWgmmaSums);
  }
  std::string fp8_verdict(const std::function<void(moe::LayerWeights&)>& change) const {
    moe::LayerWeights weights = fp8_.weights();
    change(weights);
    return fp8_verdict(fp8_.run(moe::CpuLayer(fp8_.config(), weights, 1)));
  }
  template <class T>
  static Buffer<T> copy_of(const GuardedBytes& bytes) {
    Buffer<T> copy(bytes.size() / sizeof(T));
    std::memcpy(copy.data(), bytes.data(), bytes.size());
    return copy;
  }

  const LayerData fp8_;
  const moe::OracleResult fp8_reference_;
};

TEST_P(PlantedFp8Error, NoneIsAccepted) {
  EXPECT_EQ(fp8_verdict(fp8_.run()), "");
  EXPECT_EQ(judge(fp8_.layer_case(), fp8_.run(), fp8_.reference(), kCpuSums), "");
}

// Scales [E, 2, 2, 3] and [E, 3, 2]: one block's becomes that of the block beside it or below it, of one expert alone.
TEST_P(PlantedFp8Error, TheNeighbouringBlocksScale) {
  auto gate_up = copy_of<float>(fp8_.gate_up_scale());
  const auto with_gate_up = [&](moe::LayerWeights& w) { w.gate_up_scale = gate_up.data(); };
  gate_up[12 + 0] = gate_up[12 + 1];
  EXPECT_NE(fp8_verdict(with_gate_up), "") << "beside it";
  gate_up = copy_of<float>(fp8_.gate_up_scale());
  for (size_t block = 0; block < 3; ++block) gate_up[12 + 6 + block] = gate_up[12 + 9 + block];
  EXPECT_NE(fp8_verdict(with_gate_up), "") << "the rows below, of up";
  auto down = copy_of<float>(fp8_.down_scale());
  const auto with_down = [&](moe::LayerWeights& w) { w.down_scale = down.data(); };
  down[6 + 5] = down[6 + 4];
  EXPECT_NE(fp8_verdict(with_down), "") << "a block of 16 rows and 80 columns";
  down = copy_of<float>(fp8_.down_scale());
  std::copy_n(down.data() + 6, 6, down.data());
  EXPECT_NE(fp8_verdict(with_down), "") << "another expert's";
}

TEST_P(PlantedFp8Error, ScalesOfGateAndUpSwapped) {
  auto scales = copy_of<float>(fp8_.gate_up_scale());
  for (size_t expert = 0; expert < 4; ++expert)
    std::swap_ranges(scales.data() + 12 * expert, scales.data() + 12 * expert + 6, scales.data() + 12 * expert + 6);
  EXPECT_NE(fp8_verdict([&](moe::LayerWeights& w) { w.gate_up_scale = scales.data(); }), "");
}

TEST_P(PlantedFp8Error, TheLastBlockIsLost) {
  auto gate_up = copy_of<uint8_t>(fp8_.gate_up());
  for (size_t i = 0; i < gate_up.size(); ++i) gate_up[i] = i % 272 >= 256 ? uint8_t{0} : gate_up[i];
  EXPECT_NE(fp8_verdict([&](moe::LayerWeights& w) { w.gate_up = gate_up.data(); }), "");
  auto down = copy_of<uint8_t>(fp8_.down());
  for (size_t i = 0; i < down.size(); ++i) down[i] = i % 208 >= 128 ? uint8_t{0} : down[i];
  EXPECT_NE(fp8_verdict([&](moe::LayerWeights& w) { w.down = down.data(); }), "");
}

TEST_P(PlantedFp8Error, ARowThatIsALittleTooLarge) {
  std::vector<float> rows = values_of(fp8_.run(), GetParam());
  for (size_t i = 0; i < 272; ++i) rows[i] *= 1.03f;  // within what single elements may be off
  EXPECT_NE(judge_rows(fp8_.layer_case(), rows, fp8_reference_, kCpuSums), "");
  rows = values_of(fp8_.run(), GetParam());
  for (float& value : rows) value *= 1.01f;
  const std::string problem = judge_rows(fp8_.layer_case(), rows, fp8_reference_, kCpuSums);
  EXPECT_EQ(problem.find("half of the rows have a relative error of at least "), 0u) << problem;
}

std::string type_name(const ::testing::TestParamInfo<DType>& info) { return std::string(dtype_name(info.param)); }

INSTANTIATE_TEST_SUITE_P(, PlantedError, ::testing::Values(DType::f32, DType::bf16, DType::f16), type_name);
INSTANTIATE_TEST_SUITE_P(, PlantedFp8Error, ::testing::Values(DType::f32, DType::bf16, DType::f16), type_name);

}  // namespace
}  // namespace tessera::testing
