// The table of weight formats: what everything that reads weights needs to know of each. One row a format.
//
//   const FormatRow& format = format_row(config.weight_format);
//   weight_bytes(format, config.dtype, rows, columns) + scale_bytes(format, rows, columns)
//
// docs/how-to/add-a-format.md walks through adding one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "tessera/core/dtype.h"
#include "tessera/core/e4m3.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

struct FormatRow {
  WeightFormat format;
  std::string_view name;
  int32_t bits;  ///< of an element; 0: those of the layer's dtype
  /// A scale belongs to a block of this many rows and columns of a weight matrix; 0, 0: the format has none. Columns
  /// may be kWholeRow.
  int32_t scale_block_rows, scale_block_columns;
  DType scale_dtype;  ///< of scales; unused without any
  /// Element `index` of `weights` (host memory), without its scale. `dtype` is the layer's.
  double (*decode)(const void* weights, DType dtype, int64_t index);
  double product_roundoff;  ///< unit roundoff of the sums in which the GPU's products of this format end
  /// Tokens, and the intermediate, are multiplied as e4m3 with a scale each this many columns; 0: as they are kept.
  int32_t token_group = 0, row_group = 0;

  bool has_scales() const { return scale_block_rows != 0; }
  /// A scale for each row of a weight: it multiplies the row's sum.
  bool scales_rows() const { return scale_block_columns == kWholeRow; }
  bool quantizes_rows() const { return row_group != 0; }
};

std::span<const FormatRow> format_rows();

/// Error for a number that is no format.
const FormatRow& format_row(WeightFormat format);

/// What widths are multiples of: kWidthMultiple, or so many elements that a row of weights is whole vectors of 16
/// bytes.
int32_t width_multiple(const FormatRow& row);

/// Bytes of a matrix [rows, columns] of the format, and of its scales [ceil(rows / block), ceil(columns / block)].
size_t weight_bytes(const FormatRow& row, DType dtype, int64_t rows, int64_t columns);
size_t scale_bytes(const FormatRow& row, int64_t rows, int64_t columns);

/// Scales of a token of so many columns: 0 of a format that does not quantise them.
int64_t num_token_groups(const FormatRow& row, int64_t columns);

/// What a layer's tensor of scales is made for: so many matrices, rows and columns counted from where the first block
/// begins.
struct ScaleExtent {
  int64_t matrices, rows, columns;
};
ScaleExtent gate_up_scale_extent(const LayerConfig& config);
ScaleExtent down_scale_extent(const LayerConfig& config);
ScaleExtent shared_gate_up_scale_extent(const LayerConfig& config);
ScaleExtent shared_down_scale_extent(const LayerConfig& config);

/// Of the row, see above.
size_t scale_bytes(const FormatRow& row, const ScaleExtent& extent);

}  // namespace tessera::moe
