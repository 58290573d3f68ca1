#include "moe/cpu/weight_panel.h"

#include <algorithm>

#include "cpu/e4m3_rows.h"
#include "moe/formats.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"

namespace tessera::moe::cpu_steps {
namespace {

// The product of an element and its scale is rounded once, to fp32.
void decode_fp8_rows(const FormatRow& format, const ExpertWeight& weight, int64_t begin, int64_t width, float* out) {
  const int64_t block_rows = format.scale_block_rows, block_columns = format.scale_block_columns;
  const int64_t blocks_down = scale_groups(weight.scale_extent.rows, block_rows);
  const int64_t blocks_across = scale_groups(weight.scale_extent.columns, block_columns);
  for (int64_t row = begin; row < begin + width; ++row, out += weight.depth) {
    int64_t scale_row = weight.first_row + row;  // a scale each stands in the order of the rows
    if (!format.scales_rows()) {
      const int64_t second = weight.pairs_of_rows ? row % 2 : 0;
      const int64_t in_matrix = (weight.pairs_of_rows ? row / 2 : row) + weight.row_offsets[second];
      scale_row = (weight.matrix + second) * blocks_down + in_matrix / block_rows;
    }
    const float* scales = static_cast<const float*>(weight.scales) + scale_row * blocks_across;
    const uint8_t* codes = static_cast<const uint8_t*>(weight.elements) + (weight.first_row + row) * weight.depth;
    for (int64_t block = 0; block < blocks_across; ++block) {
      const int64_t column = std::max<int64_t>(block * block_columns - weight.column_offset, 0);
      const int64_t end = std::min((block + 1) * block_columns - weight.column_offset, weight.depth);
      cpu::decode_e4m3(codes + column, end - column, scales[block], out + column);
    }
  }
}

}  // namespace

const void* load_panel(const CpuRun& run, const ExpertWeight& weight, int64_t begin, int64_t width, float* decoded) {
  const FormatRow& format = format_row(run.config.weight_format);
  switch (format.format) {
    case WeightFormat::dense:
      return static_cast<const std::byte*>(weight.elements) +
             static_cast<size_t>((weight.first_row + begin) * weight.depth) * run.element_bytes();
    case WeightFormat::fp8_block:
    case WeightFormat::fp8_channel: decode_fp8_rows(format, weight, begin, width, decoded); return decoded;
  }
  TESSERA_CHECK(false, format.name);
}

}  // namespace tessera::moe::cpu_steps
