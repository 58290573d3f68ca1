// Rows and blocks to e4m3 against the recipe in plain loops and doubles.
#include "tessera/moe/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

#include "cpu/convert.h"
#include "moe/judge/tensor_core.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"
#include "unit/error_message.h"

namespace tessera::moe {
namespace {

using testing::error_of;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

std::vector<std::byte> elements_of(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> elements(values.size() * dtype_size(dtype));
  cpu::from_f32(values.data(), static_cast<int64_t>(values.size()), dtype, elements.data());
  return elements;
}

std::vector<float> floats_of(const std::vector<std::byte>& elements, DType dtype) {
  std::vector<float> values(elements.size() / dtype_size(dtype));
  cpu::to_f32(elements.data(), dtype, static_cast<int64_t>(values.size()), values.data());
  return values;
}

Quantized rows_of(const std::vector<float>& values, int64_t columns, DType dtype = DType::f32) {
  const int64_t rows = static_cast<int64_t>(values.size()) / columns;
  Quantized q{std::vector<uint8_t>(values.size(), 0xAA),
              std::vector<float>(static_cast<size_t>(rows * ((columns + 127) / 128)), -7.0f)};
  const auto elements = elements_of(values, dtype);
  quantize_rows(elements.data(), dtype, {rows, columns}, q.codes.data(), q.scales.data());
  return q;
}

// fp32 steps from doubles: a product of two 24-bit numbers is exact in one, a quotient is far from a tie.
float expected_scale(double amax) {
  const auto reciprocal = static_cast<float>(1.0 / 448.0);
  return static_cast<float>(std::max(amax, static_cast<double>(1e-10f)) * static_cast<double>(reciprocal));
}
uint8_t expected_code(float value, float scale) {
  const auto inverse = static_cast<float>(1.0 / static_cast<double>(scale));
  const auto scaled = static_cast<float>(static_cast<double>(value) * static_cast<double>(inverse));
  return static_cast<uint8_t>(nearest_operand(TensorCoreType::e4m3, static_cast<double>(scaled)));
}

std::vector<float> random_values(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    value = (static_cast<float>(random() % 20001) - 10000.0f) * 1e-4f;
    if (random() % 50 == 0) value *= std::ldexp(1.0f, static_cast<int>(random() % 60) - 40);
  }
  return values;
}

TEST(QuantizeRows, IsTheRecipe) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const int64_t columns : {1, 16, 127, 128, 129, 256, 400}) {
      const auto values = random_values(static_cast<size_t>(5 * columns), static_cast<uint32_t>(columns));
      const auto rounded = floats_of(elements_of(values, dtype), dtype);
      const Quantized q = rows_of(values, columns, dtype);
      for (int64_t row = 0; row < 5; ++row) {
        for (int64_t begin = 0; begin < columns; begin += 128) {
          double amax = 0.0;
          for (int64_t c = begin; c < std::min(begin + 128, columns); ++c)
            amax = std::max(amax, std::abs(static_cast<double>(rounded[static_cast<size_t>(row * columns + c)])));
          const float scale = q.scales[static_cast<size_t>(row * ((columns + 127) / 128) + begin / 128)];
          ASSERT_EQ(scale, expected_scale(amax)) << columns << " " << row << " " << begin;
          for (int64_t c = begin; c < std::min(begin + 128, columns); ++c) {
            const auto place = static_cast<size_t>(row * columns + c);
            ASSERT_EQ(q.codes[place], expected_code(rounded[place], scale)) << columns << " " << row << " " << c;
          }
        }
      }
    }
  }
}

TEST(QuantizeRows, ByHand) {
  // amax 3.5: scale 2^-7, codes of the values times 128. -0 keeps its sign.
  std::vector<float> row(130, 0.0f);
  row[0] = 3.5f;
  row[1] = -1.0f;
  row[2] = 0.0078125f;
  row[3] = -0.0f;
  row[128] = -448.0f;
  const Quantized q = rows_of(row, 130);
  EXPECT_EQ(q.scales, (std::vector<float>{0x1p-7f, 1.0f}));
  EXPECT_EQ(q.codes[0], 0x7E);
  EXPECT_EQ(q.codes[1], 0x80 | (14 << 3));  // -128 = -2^7
  EXPECT_EQ(q.codes[2], 7 << 3);            // 1
  EXPECT_EQ(q.codes[3], 0x80);
  EXPECT_EQ(q.codes[4], 0x00);
  EXPECT_EQ(q.codes[128], 0xFE);
  EXPECT_EQ(q.codes[129], 0x00);
}

TEST(QuantizeRows, ANanIsItsGroupsAlone) {
  std::vector<float> row(384, 1.0f);
  row[200] = -std::nanf("1");
  const Quantized q = rows_of(row, 384);
  EXPECT_EQ(q.scales[0], 0x1.24924ap-9f);
  EXPECT_EQ(q.scales[2], q.scales[0]);
  EXPECT_EQ(std::bit_cast<uint32_t>(q.scales[1]), 0x7FFFFFFFu);
  for (size_t i = 0; i < 384; ++i) EXPECT_EQ(q.codes[i], i / 128 == 1 ? 0x7F : 0x7E) << i;
}

TEST(QuantizeRows, AnInfinityLeavesZeros) {
  std::vector<float> row(128, -2.0f);
  row[7] = -kInfinity;
  row[8] = 3.0f;
  const Quantized q = rows_of(row, 128);
  EXPECT_EQ(q.scales[0], kInfinity);
  for (size_t i = 0; i < 128; ++i) EXPECT_EQ(q.codes[i], i == 7 ? 0x7F : i == 8 ? 0x00 : 0x80) << i;
}

TEST(QuantizeRows, TinyValuesHaveTheLeastScale) {
  std::vector<float> row(128, 0.0f);
  const float least = 1e-10f * (1.0f / 448.0f);
  EXPECT_EQ(rows_of(row, 128).scales[0], least);
  row[1] = 1e-10f;
  row[2] = 1e-38f;
  row[3] = 0x1p-149f;
  row[4] = 2e-13f;
  const Quantized q = rows_of(row, 128);
  EXPECT_EQ(q.scales[0], least);
  EXPECT_EQ(q.codes[1], 0x7E);
  EXPECT_EQ(q.codes[2], 0x00);
  EXPECT_EQ(q.codes[3], 0x00);
  EXPECT_EQ(q.codes[4], expected_code(2e-13f, least));
  EXPECT_NE(q.codes[4], 0x00);
}

// Every row of a weight's part is where the layout says, and its block has the scale of its own largest magnitude.
TEST(QuantizeBlocks, EveryOrderHasTheScalesOfGateFirst) {
  constexpr int64_t kExperts = 3, kWidth = 144, kHidden = 272;
  std::mt19937 random(3);
  // A block's numbers are of a size of its own.
  const auto value_at = [](int64_t expert, int64_t part, int64_t row, int64_t column) {
    const auto hash = static_cast<uint32_t>(((expert * 2 + part) * kWidth + row) * kHidden + column) * 2654435761u;
    const int power = static_cast<int>(row / 128 + 3 * (column / 128) + 5 * part + 7 * expert) % 11;
    return std::ldexp(static_cast<float>(hash >> 16) / 65536.0f - 0.5f, power);
  };
  for (const GateUpOrder order : {GateUpOrder::gate_first, GateUpOrder::interleaved, GateUpOrder::up_first}) {
    std::vector<float> values(kExperts * 2 * kWidth * kHidden);
    for (int64_t e = 0; e < kExperts; ++e) {
      for (int64_t i = 0; i < kWidth; ++i) {
        for (int64_t c = 0; c < kHidden; ++c) {
          const int64_t first = e * 2 * kWidth;
          values[static_cast<size_t>((first + gate_row(order, i, kWidth)) * kHidden + c)] = value_at(e, 0, i, c);
          values[static_cast<size_t>((first + up_row(order, i, kWidth)) * kHidden + c)] = value_at(e, 1, i, c);
        }
      }
    }
    std::vector<uint8_t> codes(values.size());
    std::vector<float> scales(kExperts * 2 * 2 * 3);
    quantize_blocks(values.data(), DType::f32, {kExperts, 2 * kWidth, kHidden, true, order}, codes.data(),
                    scales.data());
    for (int64_t e = 0; e < kExperts; ++e) {
      for (int64_t part = 0; part < 2; ++part) {
        for (int64_t begin = 0; begin < kWidth; begin += 128) {
          for (int64_t left = 0; left < kHidden; left += 128) {
            double amax = 0.0;
            for (int64_t i = begin; i < std::min(begin + 128, kWidth); ++i) {
              for (int64_t c = left; c < std::min(left + 128, kHidden); ++c)
                amax = std::max(amax, std::abs(static_cast<double>(value_at(e, part, i, c))));
            }
            const float scale = scales[static_cast<size_t>(((e * 2 + part) * 2 + begin / 128) * 3 + left / 128)];
            ASSERT_EQ(scale, expected_scale(amax));
            for (int64_t i = begin; i < std::min(begin + 128, kWidth); i += 5) {
              const int64_t row = part == 0 ? gate_row(order, i, kWidth) : up_row(order, i, kWidth);
              for (int64_t c = left; c < std::min(left + 128, kHidden); c += 3)
                ASSERT_EQ(codes[static_cast<size_t>((e * 2 * kWidth + row) * kHidden + c)],
                          expected_code(value_at(e, part, i, c), scale));
            }
          }
        }
      }
    }
  }
}

TEST(QuantizeBlocks, OneMatrixAndItsTypes) {
  const auto values = random_values(200 * 130, 9);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const auto elements = elements_of(values, dtype);
    const auto rounded = floats_of(elements, dtype);
    std::vector<uint8_t> codes(values.size()), same(values.size());
    std::vector<float> scales(4), same_scales(4);
    quantize_blocks(elements.data(), dtype, {1, 200, 130}, codes.data(), scales.data());
    quantize_blocks(rounded.data(), DType::f32, {1, 200, 130}, same.data(), same_scales.data());
    EXPECT_EQ(codes, same);
    EXPECT_EQ(scales, same_scales);
    EXPECT_NE(scales[0], scales[3]);
  }
}

TEST(Quantize, BadArgumentsAreNamed) {
  float values[4] = {};
  uint8_t codes[4];
  float scales[4];
  EXPECT_EQ(error_of([&] {
              quantize_rows(nullptr, DType::f32, {1, 4}, codes, scales);
            }),
            "values: got a null pointer, expected host memory");
  EXPECT_EQ(error_of([&] {
              quantize_rows(values, DType::f32, {1, 4}, nullptr, scales);
            }),
            "codes: got a null pointer, expected host memory");
  EXPECT_EQ(error_of([&] {
              quantize_rows(values, DType::f32, {1, 4}, codes, nullptr);
            }),
            "scales: got a null pointer, expected host memory");
  EXPECT_EQ(error_of([&] {
              quantize_rows(values, DType::f32, {-1, 4}, codes, scales);
            }),
            "rows: got -1, expected 0..1099511627776");
  EXPECT_EQ(error_of([&] {
              quantize_rows(values, static_cast<DType>(9), {1, 4}, codes, scales);
            }),
            "dtype: got 9, expected 0..2");
  EXPECT_EQ(error_of([&] { quantize_rows(nullptr, DType::f32, {0, 4}, nullptr, nullptr); }), "no error");
  EXPECT_EQ(error_of([&] {
              quantize_blocks(values, DType::f32, {1, 1, 4, true}, codes, scales);
            }),
            "rows: got 1, expected as many gate rows as up rows");
}

TEST(CheckScales, NamesTensorExpertAndBlock) {
  LayerConfig config;
  config.hidden_size = 272;
  config.intermediate_size = config.shared_intermediate_size = 144;
  config.num_experts = 3;
  config.top_k = 1;
  config.weight_format = WeightFormat::fp8_block;
  std::vector<float> gate_up(3 * 2 * 2 * 3, 0.5f), down(3 * 3 * 2, 0.5f), shared(2 * 2 * 3, 0.5f),
      shared_down(3 * 2, 0.5f);
  LayerWeights weights;
  weights.gate_up_scale = gate_up.data();
  weights.down_scale = down.data();
  weights.shared_gate_up_scale = shared.data();
  weights.shared_down_scale = shared_down.data();
  const auto message = [&] { return error_of([&] { check_scales(config, weights); }); };
  gate_up[0] = 0.0f;
  gate_up[1] = 1e-38f;
  EXPECT_EQ(message(), "no error");
  const auto with = [&](std::vector<float>& scales, size_t place, float value) {
    const float before = std::exchange(scales[place], value);
    const std::string text = message();
    scales[place] = before;
    return text;
  };
  EXPECT_EQ(with(gate_up, (2 * 2 + 1) * 6 + 1 * 3 + 2, std::nanf("")),
            "gate_up scale of expert 2, up, block [1, 2]: got nan, expected a finite number that is not negative");
  EXPECT_EQ(with(gate_up, 3, kInfinity),
            "gate_up scale of expert 0, gate, block [1, 0]: got inf, expected a finite number that is not negative");
  EXPECT_EQ(with(down, 6 + 5, -1.0f),
            "down scale of expert 1, block [2, 1]: got -1, expected a finite number that is not negative");
  EXPECT_EQ(with(shared, 11, -kInfinity),
            "shared gate_up scale, up, block [1, 2]: got -inf, expected a finite number that is not negative");
  EXPECT_EQ(with(shared_down, 5, -1.0f),
            "shared down scale, block [2, 1]: got -1, expected a finite number that is not negative");
  // A third block row of up's, a third block column of down's.
  config.scale_offsets = {0, 113, 113};
  gate_up.resize(3 * 2 * 3 * 3, 0.5f);
  down.resize(3 * 3 * 3, 0.5f);
  weights.gate_up_scale = gate_up.data();
  weights.down_scale = down.data();
  EXPECT_EQ(with(gate_up, 53, -1.0f),
            "gate_up scale of expert 2, up, block [2, 2]: got -1, expected a finite number that is not negative");
  EXPECT_EQ(with(down, 26, -1.0f),
            "down scale of expert 2, block [2, 2]: got -1, expected a finite number that is not negative");
  config.scale_offsets = {0, 0, -128};
  EXPECT_EQ(message(), "down scale offset: got -128, expected 0..127");
  config.scale_offsets = {};
  config.gated = false;
  gate_up.resize(3 * 2 * 3);
  weights.gate_up_scale = gate_up.data();
  EXPECT_EQ(with(gate_up, 6, -1.0f),
            "gate_up scale of expert 1, block [0, 0]: got -1, expected a finite number that is not negative");
  config.weight_format = WeightFormat::dense;
  EXPECT_EQ(with(gate_up, 6, -1.0f), "no error");
}

}  // namespace
}  // namespace tessera::moe
