#include "tessera/moe/convert_scales.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "moe/validation.h"
#include "tessera/core/check.h"
#include "tessera/core/dtype.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

constexpr int64_t kBlock = kScaleGroup;  // rows and columns

int64_t num_blocks(int64_t extent) { return (extent + kBlock - 1) / kBlock; }

float e8m0_to_f32(uint8_t byte) {
  if (byte == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>(byte == 0 ? uint32_t{1} << 22 : uint32_t{byte} << 23);  // 2^-127 is subnormal
}

size_t type_bytes(ScaleType type) {
  return type == ScaleType::f32 ? sizeof(float) : type == ScaleType::bf16 ? sizeof(uint16_t) : 1;
}

float load(const StoredScales& stored, int64_t index) {
  const auto* const place =
      static_cast<const std::byte*>(stored.values) + static_cast<size_t>(index) * type_bytes(stored.type);
  float value;
  uint16_t half;
  switch (stored.type) {
    case ScaleType::f32: std::memcpy(&value, place, sizeof(value)); return value;
    case ScaleType::bf16: std::memcpy(&half, place, sizeof(half)); return bf16_to_f32(half);
    case ScaleType::e8m0: return e8m0_to_f32(std::to_integer<uint8_t>(*place));
  }
  TESSERA_CHECK(false, static_cast<int>(stored.type));
}

// One weight's scales, stored and wanted.
class Conversion {
 public:
  Conversion(const StoredScales& stored, const WeightShape& shape, int32_t up_offset)
      : stored_(stored), shape_(shape), up_offset_(up_offset), part_rows_(shape.rows / shape.num_parts()) {}

  void run(float* scales) const {
    const int64_t rows = num_blocks(part_rows_ + up_offset_), columns = num_blocks(shape_.columns);
    for (int64_t matrix = 0; matrix < shape_.num_matrices; ++matrix) {
      for (int64_t part = 0; part < shape_.num_parts(); ++part) {
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t column = 0; column < columns; ++column) *scales++ = scale(matrix, part, row, column);
        }
      }
    }
  }

 private:
  // Of the block of a part: at most two stored ones have rows of it.
  float scale(int64_t matrix, int64_t part, int64_t row, int64_t column) const {
    const int64_t offset = part == 1 ? up_offset_ : 0;
    const int64_t begin = std::max(row * kBlock - offset, int64_t{0});
    const int64_t end = std::min((row + 1) * kBlock - offset, part_rows_);
    if (begin >= end) return 0.0f;
    const auto where = [&] {
      const char* const half = shape_.gate_and_up ? part == 0 ? ", gate" : ", up" : "";
      return str_cat("scale of expert ", matrix, half, ", block [", row, ", ", column, "]");
    };
    const float first = stored_scale(matrix, part, begin, column), last = stored_scale(matrix, part, end - 1, column);
    for (const float value : {first, last}) {
      if (!std::isfinite(value) || value < 0.0f)
        throw Error(where(), str_cat(value), "a finite number that is not negative");
    }
    if (first != last) {
      throw Error(where(), str_cat(first, " and ", last, " in the stored grid"),
                  str_cat("one scale, or the up offset ", part_rows_ % kBlock, " here and in the layer"));
    }
    return first;
  }

  float stored_scale(int64_t matrix, int64_t part, int64_t row, int64_t column) const {
    const bool concatenated = stored_.grid == ScaleGrid::concatenated;
    const int64_t in_part = num_blocks(part_rows_), parts = shape_.num_parts();
    const int64_t in_matrix = concatenated ? num_blocks(shape_.rows) : parts * in_part;
    const int64_t block = concatenated                             ? (part * part_rows_ + row) / kBlock
                          : stored_.grid == ScaleGrid::interleaved ? parts * (row / kBlock) + part
                                                                   : part * in_part + row / kBlock;
    return load(stored_, (matrix * in_matrix + block) * num_blocks(shape_.columns) + column);
  }

  StoredScales stored_;
  WeightShape shape_;
  int64_t up_offset_;
  int64_t part_rows_;
};

void require(const StoredScales& stored, const WeightShape& shape, int32_t up_offset, const float* scales) {
  constexpr int64_t kMostElements = int64_t{1} << 40;
  require_range("scale type", static_cast<int64_t>(stored.type), 0, static_cast<int64_t>(ScaleType::e8m0));
  require_range("grid", static_cast<int64_t>(stored.grid), 0, static_cast<int64_t>(ScaleGrid::interleaved));
  require_range("num_matrices", shape.num_matrices, 0, kMostElements);
  require_range("rows", shape.rows, 0, kMostElements);
  require_range("columns", shape.columns, 0, kMostElements);
  if (shape.rows % shape.num_parts() != 0) throw Error("rows", str_cat(shape.rows), "as many gate rows as up rows");
  if (!shape.gate_and_up && stored.grid != ScaleGrid::per_projection)
    throw Error("grid", "one of gate and up rows", "per_projection: the weight is one projection");
  const int64_t natural = stored.grid == ScaleGrid::concatenated ? shape.rows / 2 % kBlock : 0;
  if (up_offset != 0 && up_offset != natural)
    throw Error("up offset", str_cat(up_offset), natural == 0 ? "0" : str_cat("0 or ", natural));
  if (shape.num_matrices * shape.rows * shape.columns == 0) return;
  require_pointer("stored scales", stored.values, "host memory", type_bytes(stored.type));
  require_pointer("scales", scales, "host memory", sizeof(float));
}

}  // namespace

void convert_scales(const StoredScales& stored, const WeightShape& shape, int32_t up_offset, float* scales) {
  require(stored, shape, up_offset, scales);
  if (shape.num_matrices * shape.rows * shape.columns != 0) Conversion(stored, shape, up_offset).run(scales);
}

}  // namespace tessera::moe
