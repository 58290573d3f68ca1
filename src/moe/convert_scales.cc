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

constexpr int64_t kMostElements = int64_t{1} << 40;

float e8m0_to_f32(uint8_t byte) {
  if (byte == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>(byte == 0 ? uint32_t{1} << 22 : uint32_t{byte} << 23);  // 2^-127 is subnormal
}

size_t type_bytes(ScaleType type) {
  return type == ScaleType::f32 ? sizeof(float) : type == ScaleType::bf16 ? sizeof(uint16_t) : 1;
}

float load(const void* values, ScaleType type, int64_t index) {
  const auto* const place = static_cast<const std::byte*>(values) + static_cast<size_t>(index) * type_bytes(type);
  float value;
  uint16_t half;
  switch (type) {
    case ScaleType::f32: std::memcpy(&value, place, sizeof(value)); return value;
    case ScaleType::bf16: std::memcpy(&half, place, sizeof(half)); return bf16_to_f32(half);
    case ScaleType::e8m0: return e8m0_to_f32(std::to_integer<uint8_t>(*place));
  }
  TESSERA_CHECK(false, static_cast<int>(type));
}

template <class Where>
void require_scale(float value, const Where& where) {
  if (!std::isfinite(value) || value < 0.0f)
    throw Error(where(), str_cat(value), "a finite number that is not negative");
}

// One weight's scales, stored and wanted.
class Conversion {
 public:
  Conversion(const StoredScales& stored, const WeightShape& shape, int32_t up_offset)
      : stored_(stored), shape_(shape), up_offset_(up_offset), part_rows_(shape.rows / shape.num_parts()) {}

  void run(float* scales) const {
    const int64_t rows = scale_groups(part_rows_ + up_offset_), columns = scale_groups(shape_.columns);
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
    const int64_t begin = std::max(row * kScaleGroup - offset, int64_t{0});
    const int64_t end = std::min((row + 1) * kScaleGroup - offset, part_rows_);
    if (begin >= end) return 0.0f;
    const auto where = [&] {
      const char* const half = shape_.gate_and_up ? part == 0 ? ", gate" : ", up" : "";
      return str_cat("scale of expert ", matrix, half, ", block [", row, ", ", column, "]");
    };
    const float first = stored_scale(matrix, part, begin, column), last = stored_scale(matrix, part, end - 1, column);
    for (const float value : {first, last}) require_scale(value, where);
    if (first != last) {
      throw Error(where(), str_cat(first, " and ", last, " in the stored grid"),
                  str_cat("one scale, or the up offset ", part_rows_ % kScaleGroup, " here and in the layer"));
    }
    return first;
  }

  float stored_scale(int64_t matrix, int64_t part, int64_t row, int64_t column) const {
    const bool concatenated = stored_.grid == ScaleGrid::concatenated;
    const int64_t in_part = scale_groups(part_rows_), parts = shape_.num_parts();
    const int64_t in_matrix = concatenated ? scale_groups(shape_.rows) : parts * in_part;
    const int64_t block = concatenated                             ? (part * part_rows_ + row) / kScaleGroup
                          : stored_.grid == ScaleGrid::interleaved ? parts * (row / kScaleGroup) + part
                                                                   : part * in_part + row / kScaleGroup;
    return load(stored_.values, stored_.type, (matrix * in_matrix + block) * scale_groups(shape_.columns) + column);
  }

  StoredScales stored_;
  WeightShape shape_;
  int64_t up_offset_;
  int64_t part_rows_;
};

void require_shape(ScaleType type, const WeightShape& shape) {
  require_range("scale type", static_cast<int64_t>(type), 0, static_cast<int64_t>(ScaleType::e8m0));
  require_range("num_matrices", shape.num_matrices, 0, kMostElements);
  require_range("rows", shape.rows, 0, kMostElements);
  require_range("columns", shape.columns, 0, kMostElements);
  if (shape.rows % shape.num_parts() != 0) throw Error("rows", str_cat(shape.rows), "as many gate rows as up rows");
}

void require_arrays(const void* stored, ScaleType type, const float* scales) {
  require_pointer("stored scales", stored, "host memory", type_bytes(type));
  require_pointer("scales", scales, "host memory", sizeof(float));
}

void require(const StoredScales& stored, const WeightShape& shape, int32_t up_offset, const float* scales) {
  require_range("grid", static_cast<int64_t>(stored.grid), 0, static_cast<int64_t>(ScaleGrid::interleaved));
  require_shape(stored.type, shape);
  if (!shape.gate_and_up && stored.grid != ScaleGrid::per_projection)
    throw Error("grid", "one of gate and up rows", "per_projection: the weight is one projection");
  const int64_t natural = stored.grid == ScaleGrid::concatenated ? shape.rows / 2 % kScaleGroup : 0;
  if (up_offset != 0 && up_offset != natural)
    throw Error("up offset", str_cat(up_offset), natural == 0 ? "0" : str_cat("0 or ", natural));
  if (shape.num_matrices * shape.rows * shape.columns != 0) require_arrays(stored.values, stored.type, scales);
}

}  // namespace

void convert_scales(const StoredScales& stored, const WeightShape& shape, int32_t up_offset, float* scales) {
  require(stored, shape, up_offset, scales);
  if (shape.num_matrices * shape.rows * shape.columns != 0) Conversion(stored, shape, up_offset).run(scales);
}

void convert_channel_scales(const StoredChannelScales& stored, const WeightShape& shape, float* scales) {
  require_range("grid", static_cast<int64_t>(stored.grid), 0, static_cast<int64_t>(ChannelGrid::matrices));
  require_shape(stored.type, shape);
  require_range("gate_up_order", static_cast<int64_t>(shape.order), 0, static_cast<int64_t>(GateUpOrder::up_first));
  if (!shape.gate_and_up && stored.grid == ChannelGrid::halves)
    throw Error("grid", "halves", "rows or matrices: the weight is one projection");
  if (shape.num_matrices * shape.rows == 0) return;
  require_arrays(stored.values, stored.type, scales);
  const int64_t rows = shape.rows, half_rows = rows / 2;
  for (int64_t matrix = 0; matrix < shape.num_matrices; ++matrix) {
    for (int64_t row = 0; row < rows; ++row) {
      const bool pairs = shape.order == GateUpOrder::interleaved;
      const bool second = pairs ? row % 2 != 0 : row >= half_rows;  // of the weight's two halves
      const int64_t half = second != (shape.order == GateUpOrder::up_first) ? 1 : 0;
      const int64_t index = stored.grid == ChannelGrid::rows     ? matrix * rows + row
                            : stored.grid == ChannelGrid::halves ? 2 * matrix + half
                                                                 : matrix;
      const float value = load(stored.values, stored.type, index);
      require_scale(value, [&] { return str_cat("scale of expert ", matrix, ", row ", row); });
      scales[matrix * rows + row] = value;
    }
  }
}

}  // namespace tessera::moe
