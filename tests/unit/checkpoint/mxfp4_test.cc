// MXFP4 to e4m3 with scales of blocks: every number that is said to be exact is, judged by doubles.
#include "checkpoint/mxfp4.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tessera/core/e4m3.h"
#include "unit/error_message.h"

namespace tessera::checkpoint {
namespace {

constexpr double kMagnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

struct Stored {
  int64_t rows, columns;
  bool gate_and_up;
  std::vector<uint8_t> codes, exponents;

  Stored(int64_t r, int64_t c, bool both, uint8_t exponent = 127)
      : rows(r),
        columns(c),
        gate_and_up(both),
        codes(static_cast<size_t>(r * c / 2)),
        exponents(static_cast<size_t>(r * c / 32), exponent) {}

  Mxfp4Matrix matrix() const { return {codes.data(), exponents.data(), rows, columns, gate_and_up}; }
  void set(int64_t row, int64_t column, int code) {
    uint8_t& pair = codes[static_cast<size_t>(row * columns / 2 + column / 2)];
    pair = static_cast<uint8_t>(column % 2 == 0 ? (pair & 0xF0) | code : (pair & 0x0F) | code << 4);
  }
  void set_exponent(int64_t row, int64_t group, int exponent) {
    exponents[static_cast<size_t>(row * columns / 32 + group)] = static_cast<uint8_t>(exponent);
  }
  double value(int64_t row, int64_t column) const {
    const int pair = codes[static_cast<size_t>(row * columns / 2 + column / 2)];
    const int code = column % 2 == 0 ? pair & 15 : pair >> 4;
    const int exponent = exponents[static_cast<size_t>(row * columns / 32 + column / 32)] - 127;
    return std::ldexp(code & 8 ? -kMagnitudes[code & 7] : kMagnitudes[code & 7], exponent);
  }
};

size_t num_scales(const Stored& stored) {
  const int64_t parts = stored.gate_and_up ? 2 : 1;
  return static_cast<size_t>(parts * scale_groups(stored.rows / parts) * scale_groups(stored.columns));
}

/// The number of elements that codes and scales do not give back.
int64_t wrong_elements(const Stored& stored, const std::vector<float>& scales) {
  std::vector<uint8_t> codes(static_cast<size_t>(stored.rows * stored.columns));
  to_e4m3(stored.matrix(), scales.data(), codes.data());
  const int64_t parts = stored.gate_and_up ? 2 : 1, block_rows = scale_groups(stored.rows / parts);
  int64_t wrong = 0;
  for (int64_t row = 0; row < stored.rows; ++row) {
    for (int64_t column = 0; column < stored.columns; ++column) {
      const int64_t block =
          (row % parts * block_rows + row / parts / 128) * scale_groups(stored.columns) + column / 128;
      const double scale = scales[static_cast<size_t>(block)];
      const double got = scale * e4m3_to_f32(codes[static_cast<size_t>(row * stored.columns + column)]);
      const double expected = stored.value(row, column);
      wrong += got != expected || std::signbit(got) != std::signbit(expected) ? 1 : 0;
    }
  }
  return wrong;
}

TEST(Mxfp4, WhatIsCalledExactIs) {
  std::mt19937 random(3);
  for (const bool gate_and_up : {false, true}) {
    Stored stored(2 * 144, 160, gate_and_up);
    for (auto& pair : stored.codes) pair = static_cast<uint8_t>(random());
    for (auto& exponent : stored.exponents) exponent = static_cast<uint8_t>(113 + random() % 15);  // 14 apart at most
    std::vector<float> scales(num_scales(stored));
    const ExactBlocks found = find_scales(stored.matrix(), scales.data(), "m");
    EXPECT_EQ(found.num_blocks, static_cast<int64_t>(scales.size()));
    EXPECT_EQ(found.num_exact, found.num_blocks);
    EXPECT_EQ(wrong_elements(stored, scales), 0);
    // By exponents alone the same is found.
    Mxfp4Matrix without = stored.matrix();
    without.codes = nullptr;
    EXPECT_EQ(find_scales(without, scales.data(), "m").num_exact, found.num_blocks);
    EXPECT_EQ(wrong_elements(stored, scales), 0);
  }
}

// Two numbers in one block, every pair of magnitudes at every distance: exact where one scale holds both, and there
// only.
TEST(Mxfp4, EveryPairOfNumbersAtEveryDistance) {
  for (int first = 1; first < 8; ++first) {
    for (int second = 1; second < 8; ++second) {
      for (int distance = 0; distance < 24; ++distance) {
        Stored stored(1, 64, false, 127);
        stored.set(0, 0, first);
        stored.set(0, 33, second | 8);
        stored.set_exponent(0, 1, 127 - distance);
        bool possible = false;  // by trying every power of two
        for (int scale = -40; scale <= 40; ++scale) {
          const auto holds = [&](double value) {
            const double scaled = std::ldexp(value, -scale);
            return std::abs(scaled) <= 448 &&
                   static_cast<double>(e4m3_to_f32(f32_to_e4m3(static_cast<float>(scaled)))) == scaled;
          };
          possible = possible || (holds(stored.value(0, 0)) && holds(stored.value(0, 33)));
        }
        std::vector<float> scales(1);
        EXPECT_EQ(find_scales(stored.matrix(), scales.data(), "m").num_exact == 1, possible)
            << first << " " << second << " " << distance;
        if (possible) {
          EXPECT_EQ(wrong_elements(stored, scales), 0) << first << " " << second << " " << distance;
        }
      }
    }
  }
}

TEST(Mxfp4, EndsOfTheExponents) {
  for (const int exponent : {0, 1, 2, 253, 254}) {
    Stored stored(1, 32, false, static_cast<uint8_t>(exponent));
    for (int code = 0; code < 16; ++code) stored.set(0, code, code);
    std::vector<float> scales(1);
    ASSERT_EQ(find_scales(stored.matrix(), scales.data(), "m").num_exact, 1) << exponent;
    EXPECT_TRUE(std::isnormal(scales[0])) << exponent;
    EXPECT_EQ(wrong_elements(stored, scales), 0) << exponent;
  }
}

TEST(Mxfp4, ZerosAskForNoScale) {
  Stored stored(1, 64, false, 127);
  stored.set_exponent(0, 1, 3);  // of zeros
  stored.set(0, 0, 7);
  std::vector<float> scales(1);
  EXPECT_EQ(find_scales(stored.matrix(), scales.data(), "m").num_exact, 1);
  Mxfp4Matrix without = stored.matrix();
  without.codes = nullptr;
  EXPECT_EQ(find_scales(without, scales.data(), "m").num_exact, 0);  // cannot know
}

TEST(Mxfp4, DenseIsExactOrRefused) {
  Stored stored(2, 32, false, 120);
  for (int column = 0; column < 32; ++column) stored.set(1, column, column % 16);
  std::vector<float> values(64);
  to_dense(stored.matrix(), DType::f32, reinterpret_cast<std::byte*>(values.data()), "m");
  for (int column = 0; column < 32; ++column)
    EXPECT_EQ(static_cast<double>(values[static_cast<size_t>(32 + column)]), stored.value(1, column));
  stored.set_exponent(1, 0, 90);
  EXPECT_EQ(testing::error_of(
                [&] { to_dense(stored.matrix(), DType::f16, reinterpret_cast<std::byte*>(values.data()), "m"); }),
            "m, row 1, columns from 0: got the number 3.63798e-12, expected numbers that F16 holds");
  stored.set_exponent(1, 0, 255);
  EXPECT_EQ(testing::error_of(
                [&] { to_dense(stored.matrix(), DType::bf16, reinterpret_cast<std::byte*>(values.data()), "m"); }),
            "m, row 1, columns from 0: got an exponent that is NaN, expected 0 to 254");
  std::vector<float> scales(1);
  EXPECT_EQ(testing::error_of([&] { find_scales(stored.matrix(), scales.data(), "m"); }),
            "m, row 1, columns from 0: got an exponent that is NaN, expected 0 to 254");
}

}  // namespace
}  // namespace tessera::checkpoint
