// Tensor maps of a Problem's operands, for the boxes that a kernel's tiles take. Innermost dimension first, a box is 64
// 16-bit elements wide.
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

/// The rows that GEMM 2 reads [I, max_rows], and those that a role writes.
CUtensorMap intermediate_map(const Problem& problem, uint32_t box_rows);
CUtensorMap out_map(const Problem& problem, Role role, uint32_t box_rows);

}  // namespace tessera::grouped
