#include "cpu/row_ops.h"

#include <cmath>
#include <limits>

#include "unit/numeric_check.h"
#include "unit/random_values.h"

namespace tessera::cpu {
namespace {

using test::GuardedArray;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(RowOps, RoundToBf16IsTheRoundingOfDtype) {
  std::vector<float> values;
  for (uint32_t high = 0; high < 0x10000; ++high) {
    for (const uint32_t low : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      const float value = std::bit_cast<float>(high << 16 | low);
      if (value == value) values.push_back(value);
    }
  }
  GuardedArray<uint16_t> out(values.size());
  round_to_bf16(values.data(), static_cast<int64_t>(values.size()), out.data());
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(out.span()[i], f32_to_bf16(values[i])) << values[i];
}

template <class T>
void expect_transposed(int64_t channels, int64_t positions) {
  const auto record = test::random_normal(static_cast<size_t>(channels * positions), 1, 1);
  const int64_t stride = channels + 3;
  GuardedArray<T> out(static_cast<size_t>(positions * stride));
  std::fill_n(out.data(), positions * stride, T{42});
  EXPECT_TRUE(transpose_record(record.data(), channels, positions, out.data(), stride));
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t column = 0; column < stride; ++column) {
      const size_t i = static_cast<size_t>(position * stride + column);
      T expected{42};
      if (column < channels) {
        const float value = record[static_cast<size_t>(column * positions + position)];
        expected = sizeof(T) == 2 ? static_cast<T>(f32_to_bf16(value)) : static_cast<T>(value);
      }
      ASSERT_EQ(out.span()[i], expected) << channels << "x" << positions << " at " << position << ", " << column;
    }
  }
  EXPECT_TRUE(out.intact());
}

TEST(RowOps, TransposesRecords) {
  for (const int64_t channels : {1, 7, 16, 17, 64, 100}) {
    for (const int64_t positions : {1, 2, 3, 16, 33}) {
      expect_transposed<float>(channels, positions);
      expect_transposed<uint16_t>(channels, positions);
    }
  }
}

TEST(RowOps, FindsWhatIsNotFiniteAnywhere) {
  constexpr int64_t kChannels = 21;
  constexpr int64_t kPositions = 5;
  std::vector<float> f32(kChannels * kPositions);
  std::vector<uint16_t> bf16(kChannels * kPositions);
  const float signalling = std::bit_cast<float>(0x7F800001u);
  const float all_ones = std::bit_cast<float>(0x7FFFFFFFu);  // rounding it up would give -0
  for (const float bad : {kInf, -kInf, kNan, signalling, all_ones, -all_ones}) {
    for (size_t place = 0; place < f32.size(); ++place) {
      auto record = test::random_normal(f32.size(), 1, 2);
      record[place] = bad;
      EXPECT_FALSE(transpose_record(record.data(), kChannels, kPositions, f32.data(), kChannels));
      EXPECT_FALSE(transpose_record(record.data(), kChannels, kPositions, bf16.data(), kChannels));
    }
  }
  // The largest float is finite, but not once rounded to bf16.
  auto record = test::random_normal(f32.size(), 1, 2);
  record[50] = std::numeric_limits<float>::max();
  EXPECT_TRUE(transpose_record(record.data(), kChannels, kPositions, f32.data(), kChannels));
  EXPECT_FALSE(transpose_record(record.data(), kChannels, kPositions, bf16.data(), kChannels));
}

TEST(RowOps, StoresOperands) {
  const auto values = test::random_normal(37, 1, 3);
  std::vector<float> f32(37);
  std::vector<uint16_t> bf16(37);
  store_operand(values.data(), 37, DType::f32, reinterpret_cast<std::byte*>(f32.data()));
  store_operand(values.data(), 37, DType::bf16, reinterpret_cast<std::byte*>(bf16.data()));
  EXPECT_TRUE(test::same_bits(f32, values));
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(bf16[i], f32_to_bf16(values[i]));
}

TEST(RowOps, MaximaKeepNotANumber) {
  std::vector<float> maxima = {1, 2, kNan, 3, -0.0f, -kInf};
  const std::vector<float> values = {2, 1, 5, kNan, 0.0f, -7};
  max_into(values.data(), 6, maxima.data());
  const std::vector<float> again(6, 1.0f);
  max_into(again.data(), 6, maxima.data());
  EXPECT_EQ(maxima[0], 2);
  EXPECT_EQ(maxima[1], 2);
  EXPECT_TRUE(std::isnan(maxima[2]));
  EXPECT_TRUE(std::isnan(maxima[3]));
  EXPECT_EQ(maxima[4], 1);
  EXPECT_EQ(maxima[5], 1);
}

TEST(RowOps, BiasAndRelu) {
  for (const int64_t size : {1, 7, 16, 33, 100}) {
    const auto values = test::random_integers(static_cast<size_t>(size), 9, 4);
    const auto bias = test::random_integers(static_cast<size_t>(size), 9, 5);
    GuardedArray<float> plain(values.size());
    GuardedArray<float> relu(values.size());
    std::copy(values.begin(), values.end(), plain.data());
    std::copy(values.begin(), values.end(), relu.data());
    add_bias(bias.data(), size, plain.data());
    add_bias_relu(bias.data(), size, relu.data());
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(plain.span()[i], values[i] + bias[i]);
      EXPECT_EQ(relu.span()[i], std::max(0.0f, values[i] + bias[i]));
      EXPECT_FALSE(std::signbit(relu.span()[i]));
    }
    EXPECT_TRUE(plain.intact());
    EXPECT_TRUE(relu.intact());
  }
  float value = kNan;
  const float zero = 0;
  add_bias_relu(&zero, 1, &value);
  EXPECT_TRUE(std::isnan(value));
}

TEST(RowOps, AddScaled) {
  const auto values = test::random_integers(50, 9, 6);
  const auto bias = test::random_integers(50, 9, 7);
  std::vector<float> sum = test::random_integers(50, 9, 8);
  const std::vector<float> before = sum;
  add_scaled(values.data(), bias.data(), 0.25f, 50, sum.data());
  for (size_t i = 0; i < sum.size(); ++i) EXPECT_EQ(sum[i], before[i] + 0.25f * (values[i] + bias[i]));
}

TEST(RowOps, GatherAddMaxForEverySize) {
  for (const int64_t width : {1, 2, 3, 9}) {
    for (const int64_t num_windows : {1, 2, 5}) {
      for (int64_t size = 1; size <= 140; size += size < 20 ? 1 : 13) {
        const size_t num_rows = static_cast<size_t>(num_windows + width - 1);
        const auto table = test::random_integers(num_rows * static_cast<size_t>(width * size), 100, 9);
        std::vector<const float*> rows;
        for (size_t row = 0; row < num_rows; ++row) {
          rows.push_back(table.data() + (num_rows - 1 - row) * static_cast<size_t>(width * size));
        }
        GuardedArray<float> out(static_cast<size_t>(size));
        gather_add_max(rows.data(), num_windows, width, size, out.data());
        std::vector<double> expected(static_cast<size_t>(size), -1e30);
        for (int64_t window = 0; window < num_windows; ++window) {
          for (int64_t i = 0; i < size; ++i) {
            double sum = 0;
            for (int64_t tap = 0; tap < width; ++tap) sum += rows[static_cast<size_t>(window + tap)][tap * size + i];
            expected[static_cast<size_t>(i)] = std::max(expected[static_cast<size_t>(i)], sum);
          }
        }
        EXPECT_TRUE(test::exactly(out.span(), expected)) << width << " " << num_windows << " " << size;
        EXPECT_TRUE(out.intact());
      }
    }
  }
}

TEST(RowOps, GatherAddMaxSumsInTheOrderOfTaps) {
  // (1e8 + 1) - 1e8 is 0 in fp32 and (1e8 - 1e8) + 1 is 1: only one order gives 0.
  constexpr int64_t kSize = 70;
  std::vector<float> rows_data(3 * 3 * kSize);
  for (int64_t i = 0; i < kSize; ++i) {
    rows_data[static_cast<size_t>(0 * 3 * kSize + 0 * kSize + i)] = 1e8f;
    rows_data[static_cast<size_t>(1 * 3 * kSize + 1 * kSize + i)] = 1.0f;
    rows_data[static_cast<size_t>(2 * 3 * kSize + 2 * kSize + i)] = -1e8f;
  }
  const float* rows[] = {rows_data.data(), rows_data.data() + 3 * kSize, rows_data.data() + 6 * kSize};
  std::vector<float> out(kSize);
  gather_add_max(rows, 1, 3, kSize, out.data());
  EXPECT_TRUE(test::same_bits(out, std::vector<float>(kSize, 0.0f)));
}

TEST(RowOps, SoftmaxSumsToOneAndShiftsCancel) {
  std::vector<float> logits = {1.0f, 2.0f, -3.0f, 0.5f};
  std::vector<float> weights(4);
  softmax(logits.data(), 4, weights.data());
  double total = 0;
  for (size_t i = 0; i < 4; ++i) {
    total += weights[i];
    EXPECT_NEAR(weights[i] / weights[0], std::exp(double{logits[i]} - double{logits[0]}), 1e-6);
  }
  EXPECT_NEAR(total, 1.0, 1e-6);
  std::vector<float> large = {1000.0f, 1000.0f};
  softmax(large.data(), 2, large.data());  // in place, and no overflow
  EXPECT_EQ(large[0], 0.5f);
  EXPECT_EQ(large[1], 0.5f);
}

}  // namespace
}  // namespace tessera::cpu
