#include "checkpoint/mxfp4.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"

namespace tessera::checkpoint {
namespace {

constexpr int64_t kGroup = 32;  // columns that share an exponent
constexpr int kExponentBias = 127;
constexpr int kNanExponent = 255;
constexpr std::array<float, 8> kMagnitudes = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
// Of each magnitude: its lowest bit that is set.
constexpr std::array<int, 8> kLowestBit = {0, -1, 0, -1, 1, 0, 2, 1};
// e4m3 holds m * 2^d up to 448: 0.5 at d = 9, 1 at 8, 1.5 at 8, 2 at 7, 3 at 7, 4 at 6, 6 at 6.
constexpr std::array<int, 8> kHighestShift = {0, 9, 8, 8, 7, 7, 6, 6};
constexpr int kLowestE4m3Bit = -9;
constexpr int kLeastScale = -126, kMostScale = 127;  // normal floats

float code_value(int code) {
  return (code & 8) != 0 ? -kMagnitudes[static_cast<size_t>(code & 7)] : kMagnitudes[static_cast<size_t>(code & 7)];
}

int code_at(const Mxfp4Matrix& matrix, int64_t row, int64_t column) {
  const uint8_t pair = matrix.codes[row * (matrix.columns / 2) + column / 2];
  return column % 2 == 0 ? pair & 15 : pair >> 4;
}

// Powers of two that a scale may be: at least `least`, so that nothing is above 448, at most `most`, so that no bit is
// below e4m3's last.
struct Range {
  int least = INT32_MIN;
  int most = INT32_MAX;

  void take(int magnitude, int exponent) {
    if (magnitude == 0) return;
    const auto i = static_cast<size_t>(magnitude);
    least = std::max(least, exponent - kHighestShift[i]);
    most = std::min(most, exponent + kLowestBit[i] - kLowestE4m3Bit);
  }
};

void take_group(const Mxfp4Matrix& matrix, int64_t row, int64_t group, const char* where, Range& range) {
  const int stored = matrix.exponents[row * (matrix.columns / kGroup) + group];
  if (stored == kNanExponent) {
    throw Error(str_cat(where, ", row ", row, ", columns from ", group * kGroup), "an exponent that is NaN",
                "0 to 254");
  }
  const int exponent = stored - kExponentBias;
  if (matrix.codes == nullptr) {
    range.take(7, exponent);  // 6
    range.take(1, exponent);  // 0.5
    return;
  }
  for (int64_t column = group * kGroup; column < (group + 1) * kGroup; ++column)
    range.take(code_at(matrix, row, column) & 7, exponent);
}

/// The scale of a block, 0 if there is none.
float block_scale(const Mxfp4Matrix& matrix, int64_t part, int64_t block_row, int64_t block_column, const char* where) {
  const int64_t part_rows = matrix.rows / matrix.parts();
  const int64_t row_end = std::min((block_row + 1) * kScaleGroup, part_rows);
  const int64_t group_end = std::min((block_column + 1) * kScaleGroup, matrix.columns) / kGroup;
  Range range;
  for (int64_t i = block_row * kScaleGroup; i < row_end; ++i) {
    for (int64_t group = block_column * kScaleGroup / kGroup; group < group_end; ++group)
      take_group(matrix, matrix.row(part, i), group, where, range);
  }
  if (range.least == INT32_MIN) return 1.0f;  // zeros
  const int scale = std::max(range.least, kLeastScale);
  return scale <= range.most && scale <= kMostScale ? std::ldexp(1.0f, scale) : 0.0f;
}

}  // namespace

ExactBlocks find_scales(const Mxfp4Matrix& matrix, float* scales, const char* where) {
  TESSERA_CHECK(matrix.columns % kGroup == 0 && matrix.rows % matrix.parts() == 0, matrix.rows, matrix.columns);
  ExactBlocks found;
  for (int64_t part = 0; part < matrix.parts(); ++part) {
    for (int64_t row = 0; row < scale_groups(matrix.rows / matrix.parts()); ++row) {
      for (int64_t column = 0; column < scale_groups(matrix.columns); ++column) {
        *scales = block_scale(matrix, part, row, column, where);
        ++found.num_blocks;
        found.num_exact += *scales++ != 0.0f ? 1 : 0;
      }
    }
  }
  return found;
}

void to_e4m3(const Mxfp4Matrix& matrix, const float* scales, uint8_t* codes) {
  const int64_t part_rows = matrix.rows / matrix.parts();
  const int64_t block_rows = scale_groups(part_rows), block_columns = scale_groups(matrix.columns);
  std::array<uint8_t, 16> table{};
  for (int64_t part = 0; part < matrix.parts(); ++part) {
    for (int64_t i = 0; i < part_rows; ++i) {
      const int64_t row = matrix.row(part, i);
      const float* const row_scales = scales + (part * block_rows + i / kScaleGroup) * block_columns;
      for (int64_t group = 0; group < matrix.columns / kGroup; ++group) {
        const int exponent = matrix.exponents[row * (matrix.columns / kGroup) + group] - kExponentBias;
        const int shift = exponent - std::ilogb(row_scales[group * kGroup / kScaleGroup]);
        for (int code = 0; code < 16; ++code)
          table[static_cast<size_t>(code)] = f32_to_e4m3(std::ldexp(code_value(code), shift));
        for (int64_t column = group * kGroup; column < (group + 1) * kGroup; ++column)
          codes[row * matrix.columns + column] = table[static_cast<size_t>(code_at(matrix, row, column))];
      }
    }
  }
}

void to_dense(const Mxfp4Matrix& matrix, DType dtype, std::byte* values, const char* where) {
  const auto store = [&](int64_t index, double exact, int64_t row, int64_t group) {
    const auto value = static_cast<float>(exact);
    const uint16_t half = dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
    const float kept = dtype == DType::f32 ? value : dtype == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
    if (static_cast<double>(kept) != exact) {
      throw Error(str_cat(where, ", row ", row, ", columns from ", group * kGroup), str_cat("the number ", exact),
                  str_cat("numbers that ", dtype_name(dtype), " holds"));
    }
    if (dtype == DType::f32) return void(std::memcpy(values + index * 4, &value, sizeof(value)));
    std::memcpy(values + index * 2, &half, sizeof(half));
  };
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t group = 0; group < matrix.columns / kGroup; ++group) {
      const int exponent = matrix.exponents[row * (matrix.columns / kGroup) + group] - kExponentBias;
      if (exponent == kNanExponent - kExponentBias)
        throw Error(str_cat(where, ", row ", row, ", columns from ", group * kGroup), "an exponent that is NaN",
                    "0 to 254");
      for (int64_t column = group * kGroup; column < (group + 1) * kGroup; ++column) {
        const double exact = std::ldexp(static_cast<double>(code_value(code_at(matrix, row, column))), exponent);
        store(row * matrix.columns + column, exact, row, group);
      }
    }
  }
}

}  // namespace tessera::checkpoint
