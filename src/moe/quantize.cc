#include "tessera/moe/quantize.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/convert.h"
#include "cpu/e4m3_rows.h"
#include "moe/formats.h"
#include "moe/validation.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

constexpr int64_t kBlock = kScaleGroup;  // rows and columns

void require_arrays(DType dtype, const void* values, const void* codes, const void* scales, int64_t count) {
  require_dtype("dtype", dtype);
  if (count == 0) return;
  require_pointer("values", values, "host memory", dtype_size(dtype));
  require_pointer("codes", codes, "host memory", 1);
  require_pointer("scales", scales, "host memory", sizeof(float));
}

void require_size(const char* name, int64_t value) { require_range(name, value, 0, int64_t{1} << 40); }

// One of a weight's matrices, or the gate or up half of one: its row i is row first + i * step of all rows.
struct Part {
  int64_t first, step, rows;
};

// The blocks of up to 128 rows of a part.
class BlockRow {
 public:
  BlockRow(const void* values, DType dtype, int64_t columns)
      : values_(static_cast<const std::byte*>(values)),
        dtype_(dtype),
        columns_(columns),
        row_(static_cast<size_t>(columns)),
        amax_(static_cast<size_t>(scale_groups(columns))) {}

  void quantize(const Part& part, int64_t begin, uint8_t* codes, float* scales) {
    const int64_t end = std::min(begin + kBlock, part.rows);
    std::fill(amax_.begin(), amax_.end(), 0u);
    for (int64_t row = begin; row < end; ++row) {
      load(part.first + row * part.step);
      each_block([&](size_t block, const float* values, int64_t count, int64_t) {
        amax_[block] = cpu::largest_magnitude(values, count, amax_[block]);
      });
    }
    for (size_t block = 0; block < amax_.size(); ++block) scales[block] = e4m3_scale(amax_[block]);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t place = part.first + row * part.step;
      load(place);
      each_block([&](size_t block, const float* values, int64_t count, int64_t column) {
        cpu::encode_e4m3(values, count, e4m3_inverse_scale(scales[block]), codes + place * columns_ + column);
      });
    }
  }

 private:
  void load(int64_t row) {
    cpu::to_f32(values_ + static_cast<size_t>(row * columns_) * dtype_size(dtype_), dtype_, columns_, row_.data());
  }
  template <class Visit>
  void each_block(const Visit& visit) const {
    for (int64_t column = 0; column < columns_; column += kBlock)
      visit(static_cast<size_t>(column / kBlock), row_.data() + column, std::min(kBlock, columns_ - column), column);
  }

  const std::byte* values_;
  DType dtype_;
  int64_t columns_;
  std::vector<float> row_;
  std::vector<uint32_t> amax_;
};

// A tensor of scales and what its dimensions are.
struct Scales {
  const char* name;
  const void* values;
  int64_t parts;  // gate and up, or one matrix
  ScaleExtent extent;
  bool is_shared = false;
};

void check(const FormatRow& format, const Scales& s) {
  require_pointer(s.name, s.values, "host memory", alignof(float));
  const int64_t block_rows = scale_groups(s.extent.rows, format.scale_block_rows);
  const int64_t block_columns = scale_groups(s.extent.columns, format.scale_block_columns);
  const int64_t count = s.extent.matrices * block_rows * block_columns;
  const auto* values = static_cast<const float*>(s.values);
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(values[i]) && values[i] >= 0.0f) continue;
    const int64_t part = i / (block_rows * block_columns), block = i % (block_rows * block_columns);
    std::string where = s.name;
    if (!s.is_shared) where += str_cat(" of expert ", part / s.parts);
    if (format.scales_rows()) {
      where += str_cat(", row ", part % s.parts * block_rows + block);
    } else {
      if (s.parts == 2) where += part % 2 == 0 ? ", gate" : ", up";
      where += str_cat(", block [", block / block_columns, ", ", block % block_columns, "]");
    }
    throw Error(where, str_cat(values[i]), "a finite number that is not negative");
  }
}

void check_input_scales(const char* name, const float* scales, int32_t count) {
  for (int32_t i = 0; i < count; ++i) {
    if (std::isfinite(scales[i]) && scales[i] > 0.0f) continue;
    throw Error(count == 1 ? name : str_cat(name, " of expert ", i), str_cat(scales[i]), "a positive finite number");
  }
}

}  // namespace

void quantize_rows(const void* values, DType dtype, const RowsShape& shape, uint8_t* codes, float* scales) {
  require_size("rows", shape.rows);
  require_size("columns", shape.columns);
  if (shape.group != kScaleGroup && shape.group != kWholeRow)
    throw Error("group", str_cat(shape.group), str_cat(kScaleGroup, " columns, or the whole row"));
  require_arrays(dtype, values, codes, scales, shape.rows * shape.columns);
  std::vector<float> row(static_cast<size_t>(shape.columns));
  const size_t row_bytes = static_cast<size_t>(shape.columns) * dtype_size(dtype);
  for (int64_t i = 0; i < shape.rows; ++i) {
    cpu::to_f32(static_cast<const std::byte*>(values) + static_cast<size_t>(i) * row_bytes, dtype, shape.columns,
                row.data());
    cpu::quantize_row(row.data(), shape.columns, shape.group, codes + i * shape.columns,
                      scales + i * scale_groups(shape.columns, shape.group));
  }
}

void quantize_blocks(const void* values, DType dtype, const WeightShape& shape, uint8_t* codes, float* scales) {
  require_size("num_matrices", shape.num_matrices);
  require_size("rows", shape.rows);
  require_size("columns", shape.columns);
  require_range("gate_up_order", static_cast<int64_t>(shape.order), 0, static_cast<int64_t>(GateUpOrder::up_first));
  if (shape.rows % shape.num_parts() != 0) throw Error("rows", str_cat(shape.rows), "as many gate rows as up rows");
  require_arrays(dtype, values, codes, scales, shape.num_matrices * shape.rows * shape.columns);
  const int64_t rows = shape.rows / shape.num_parts();
  BlockRow blocks(values, dtype, shape.columns);
  for (int64_t matrix = 0; matrix < shape.num_matrices; ++matrix) {
    for (int64_t part = 0; part < shape.num_parts(); ++part) {
      const bool pairs = shape.gate_and_up && shape.order == GateUpOrder::interleaved;
      const int64_t in_matrix = !shape.gate_and_up ? 0
                                : part == 0        ? gate_row(shape.order, 0, rows)
                                                   : up_row(shape.order, 0, rows);
      const Part lines{matrix * shape.rows + in_matrix, pairs ? 2 : 1, rows};
      for (int64_t begin = 0; begin < rows; begin += kBlock) {
        blocks.quantize(lines, begin, codes, scales);
        scales += scale_groups(shape.columns);
      }
    }
  }
}

void check_scales(const LayerConfig& config, const LayerWeights& weights) {
  const FormatRow& format = format_row(config.weight_format);
  validate_sizes(config, true);
  if (!format.has_scales()) return;
  const int64_t parts = config.gated ? 2 : 1;
  check(format, {"gate_up scale", weights.gate_up_scale, parts, gate_up_scale_extent(config)});
  check(format, {"down scale", weights.down_scale, 1, down_scale_extent(config)});
  validate_input_scales(config, weights, "host memory");
  check_input_scales("gate_up input scale", weights.gate_up_input_scale, config.num_gate_up_input_scales);
  check_input_scales("down input scale", weights.down_input_scale, config.num_down_input_scales);
  if (config.shared_intermediate_size == 0) return;
  check(format,
        {"shared gate_up scale", weights.shared_gate_up_scale, parts, shared_gate_up_scale_extent(config), true});
  check(format, {"shared down scale", weights.shared_down_scale, 1, shared_down_scale_extent(config), true});
}

}  // namespace tessera::moe
