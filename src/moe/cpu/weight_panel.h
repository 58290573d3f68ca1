// The weights of one panel as its product reads them: where they lie, or, of a format with scales, decoded to fp32.
#pragma once

#include <cstdint>

#include "moe/cpu/steps.h"
#include "moe/formats.h"

namespace tessera::moe::cpu_steps {

/// One weight of an expert: rows [first_row, ..) of all that `elements` holds.
struct ExpertWeight {
  const void* elements;  // [.., depth]
  const void* scales;    // of all matrices [rows, depth]; null for a format without
  int64_t first_row;
  int64_t matrix;      // whose scales those of row 0 are
  int64_t depth;       // elements of a row
  bool pairs_of_rows;  // rows belong to `matrix` and the next one in turn: gate and up interleaved
  // How far inside their first block of scales rows begin, of `matrix` and, where they are pairs, of the next one, and
  // columns; extents of what one matrix's scales are for.
  int64_t row_offsets[2];
  int64_t column_offset;
  ScaleExtent scale_extent;
};

/// Rows [begin, begin + width) of it, [width, depth] of the operand that the layer's products have. `decoded` is the
/// thread's scratch for them.
const void* load_panel(const CpuRun& run, const ExpertWeight& weight, int64_t begin, int64_t width, float* decoded);

}  // namespace tessera::moe::cpu_steps
