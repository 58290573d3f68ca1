// Scales of checkpoints made a layer's: types, grids, what is exact and what is refused.
#include "tessera/moe/convert_scales.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "moe/judge/exact_layer.h"
#include "moe/judge/oracle.h"
#include "tessera/core/e4m3.h"
#include "tessera/moe/cpu_layer.h"
#include "unit/error_message.h"

namespace tessera::moe {
namespace {

using testing::error_of;

int64_t blocks(int64_t extent) { return (extent + 127) / 128; }

// A scale for each block of a grid, no two alike; what rows of weights have is found by going through all rows.
struct Grid {
  ScaleGrid grid;
  int64_t experts, width, hidden;
  std::vector<float> values;

  Grid(ScaleGrid g, int64_t e, int64_t i, int64_t h)
      : grid(g), experts(e), width(i), hidden(h), values(static_cast<size_t>(e * block_rows() * blocks(h))) {
    for (size_t n = 0; n < values.size(); ++n) values[n] = 1.0f + static_cast<float>(n);
  }
  int64_t block_rows() const { return grid == ScaleGrid::concatenated ? blocks(2 * width) : 2 * blocks(width); }
  WeightShape shape() const { return {experts, 2 * width, hidden, true}; }
  float of(int64_t expert, int64_t part, int64_t row, int64_t column) const {
    int64_t block = part * blocks(width) + row / 128;
    if (grid == ScaleGrid::concatenated) block = (part * width + row) / 128;
    if (grid == ScaleGrid::interleaved) block = row / 128 * 2 + part;
    return values[static_cast<size_t>((expert * block_rows() + block) * blocks(hidden) + column / 128)];
  }
};

// Every row of every part has the scale that the stored grid gives it.
void expect_kept(const Grid& grid, int32_t up_offset) {
  const int64_t rows = blocks(grid.width + up_offset), columns = blocks(grid.hidden);
  std::vector<float> scales(static_cast<size_t>(grid.experts * 2 * rows * columns), -7.0f);
  convert_scales({grid.values.data(), ScaleType::f32, grid.grid}, grid.shape(), up_offset, scales.data());
  for (int64_t expert = 0; expert < grid.experts; ++expert) {
    for (int64_t part = 0; part < 2; ++part) {
      for (int64_t row = 0; row < grid.width; ++row) {
        for (int64_t column = 0; column < grid.hidden; column += 16) {
          const int64_t block = (row + (part == 1 ? up_offset : 0)) / 128;
          const auto place = static_cast<size_t>(((expert * 2 + part) * rows + block) * columns + column / 128);
          ASSERT_EQ(scales[place], grid.of(expert, part, row, column)) << expert << " " << part << " " << row;
        }
      }
    }
  }
  for (const float scale : scales) EXPECT_GE(scale, 0.0f) << "written, blocks without rows too";
}

TEST(ConvertScales, EveryGridKeepsEveryRowsScale) {
  for (const int64_t width : {16, 64, 80, 128, 192, 208, 256, 320, 352, 1408}) {
    for (const int64_t hidden : {144, 256}) {
      expect_kept(Grid(ScaleGrid::per_projection, 3, width, hidden), 0);
      expect_kept(Grid(ScaleGrid::interleaved, 3, width, hidden), 0);
      expect_kept(Grid(ScaleGrid::concatenated, 3, width, hidden), static_cast<int32_t>(width % 128));
    }
  }
}

TEST(ConvertScales, OneProjection) {
  const std::vector<float> stored = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> scales(8, 0.0f);
  convert_scales({stored.data()}, {2, 144, 208}, 0, scales.data());
  EXPECT_EQ(scales, stored);
}

TEST(ConvertScales, TypesAreExact) {
  std::vector<float> scales(256);
  std::vector<uint8_t> bytes(255);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i);
  convert_scales({bytes.data(), ScaleType::e8m0}, {255, 128, 128}, 0, scales.data());
  for (size_t i = 0; i < bytes.size(); ++i)
    EXPECT_EQ(static_cast<double>(scales[i]), std::ldexp(1.0, static_cast<int>(i) - 127)) << i;
  // Every bf16 number that is a scale.
  std::vector<uint16_t> halves;
  for (uint32_t bits = 0; bits < 0x7F80u; ++bits) halves.push_back(static_cast<uint16_t>(bits));
  scales.resize(halves.size());
  convert_scales({halves.data(), ScaleType::bf16}, {static_cast<int64_t>(halves.size()), 1, 1}, 0, scales.data());
  for (size_t i = 0; i < halves.size(); ++i) ASSERT_EQ(std::bit_cast<uint32_t>(scales[i]), i << 16);
}

// 192 rows of gate and 192 of up: the second of three blocks has 64 rows of each. Up's rows 0..63 and 64..127 have
// blocks 1 and 2, rows 128..191 block 2.
TEST(ConvertScales, AStraddlingGridWithoutAnOffset) {
  std::vector<float> stored = {1, 2, 3, 4, 5, 5}, scales(2 * 2 * 2);
  const StoredScales grid{stored.data(), ScaleType::f32, ScaleGrid::concatenated};
  const auto convert = [&] { convert_scales(grid, {2, 384, 128, true}, 0, scales.data()); };
  EXPECT_EQ(error_of(convert),
            "scale of expert 0, up, block [0, 0]: got 2 and 3 in the stored grid, expected one scale, or the up offset "
            "64 here and in the layer");
  stored[2] = 2;
  EXPECT_EQ(error_of(convert), "no error") << "equal scales lose nothing";
  EXPECT_EQ(scales, (std::vector<float>{1, 2, 2, 2, 4, 5, 5, 5}));
  stored[5] = std::nextafter(5.0f, 6.0f);
  EXPECT_EQ(error_of(convert).find("scale of expert 1, up, block [0, 0]: got 5 and 5"), 0u);
}

TEST(ConvertScales, WhatIsNoScaleIsRefusedByName) {
  std::vector<float> stored(2 * 4 * 2, 1.0f), scales(16);
  const auto message = [&](size_t place, float value) {
    stored[place] = value;
    const std::string text = error_of([&] { convert_scales({stored.data()}, {2, 512, 144, true}, 0, scales.data()); });
    stored[place] = 0.0f;  // taken
    return text;
  };
  EXPECT_EQ(message(15, std::nanf("")),
            "scale of expert 1, up, block [1, 1]: got nan, expected a finite number that is not negative");
  EXPECT_EQ(message(0, -1.0f),
            "scale of expert 0, gate, block [0, 0]: got -1, expected a finite number that is not negative");
  EXPECT_EQ(message(2, std::numeric_limits<float>::infinity()),
            "scale of expert 0, gate, block [1, 0]: got inf, expected a finite number that is not negative");
  EXPECT_EQ(message(0, 0.0f), "no error");
  const uint8_t bytes[] = {127, 255};
  EXPECT_EQ(error_of([&] {
              convert_scales({bytes, ScaleType::e8m0}, {1, 256, 128}, 0, scales.data());
            }),
            "scale of expert 0, block [1, 0]: got nan, expected a finite number that is not negative");
}

TEST(ConvertScales, BadArgumentsAreNamed) {
  const float stored[8] = {};
  float scales[8];
  const auto message = [&](const StoredScales& given, const WeightShape& shape, int32_t up_offset = 0) {
    return error_of([&] { convert_scales(given, shape, up_offset, scales); });
  };
  const WeightShape gated{1, 384, 128, true};
  const StoredScales through{stored, ScaleType::f32, ScaleGrid::concatenated};
  EXPECT_EQ(message({nullptr}, gated), "stored scales: got a null pointer, expected host memory");
  EXPECT_EQ(message({stored, static_cast<ScaleType>(3)}, gated), "scale type: got 3, expected 0..2");
  EXPECT_EQ(message({stored, ScaleType::f32, static_cast<ScaleGrid>(3)}, gated), "grid: got 3, expected 0..2");
  EXPECT_EQ(message({stored}, {1, 3, 128, true}), "rows: got 3, expected as many gate rows as up rows");
  EXPECT_EQ(message({stored}, {-1, 2, 128, true}), "num_matrices: got -1, expected 0..1099511627776");
  EXPECT_EQ(message(through, {1, 384, 128}),
            "grid: got one of gate and up rows, expected per_projection: the weight is one projection");
  EXPECT_EQ(message({stored}, gated, 64), "up offset: got 64, expected 0");
  EXPECT_EQ(message(through, gated, 32), "up offset: got 32, expected 0 or 64");
  EXPECT_EQ(message(through, {1, 512, 128, true}, 128), "up offset: got 128, expected 0");
  EXPECT_EQ(message({reinterpret_cast<const std::byte*>(stored) + 2}, gated),
            "stored scales: got a misaligned pointer, expected 4-byte alignment");
  EXPECT_EQ(message({nullptr}, {0, 384, 128, true}), "no error");
  EXPECT_EQ(error_of([&] { convert_scales({stored}, gated, 0, nullptr); }),
            "scales: got a null pointer, expected host memory");
}

}  // namespace
}  // namespace tessera::moe
