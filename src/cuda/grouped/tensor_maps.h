// Tensor maps of a Problem's operands, for the boxes that a kernel's tiles take. Innermost dimension first, a box is
// 128 bytes wide.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/grouped/problem.h"

namespace tessera::grouped {

/// A role's weights [K, rows, gate/up, expert] in boxes of `box_rows` rows: a tile's boxes are found by coordinates
/// alone, in whichever order gate and up rows lie.
CUtensorMap weight_map(const Problem& problem, Role role, uint32_t box_rows);

/// The same of the shared experts, which are slices of one expert that is S times as wide: of the rows of its first
/// weight, of the columns of its second. Empty if there are none.
CUtensorMap shared_weight_map(const Problem& problem, Role role, uint32_t box_rows);

/// The same weights cut into slabs of kSlabRows weight rows, in boxes of `box_slabs` slabs: [K, 8, gate/up, n / 8,
/// expert]. A slab of a gated weight is 8 rows of one half and the 8 rows of the other that belong to them (up_first:
/// up rows come first), else 16 rows. What lies beyond an expert's last row reads as zero.
inline constexpr int32_t kSlabRows = 16;
CUtensorMap slab_map(const Problem& problem, Role role, int32_t box_slabs);
CUtensorMap shared_slab_map(const Problem& problem, Role role, int32_t box_slabs);

/// The rows that a role reads in their order [K, max_rows], and those that it writes.
CUtensorMap a_map(const Problem& problem, Role role, uint32_t box_rows);
CUtensorMap out_map(const Problem& problem, Role role, uint32_t box_rows);

}  // namespace tessera::grouped
