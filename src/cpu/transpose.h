// Transpose on the host: out[b, c, r] = in[b, r, c] for a batch of matrices.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::cpu {

/// Elements of 2 or 4 bytes. `in` [num_matrices, rows, columns] and `out` [num_matrices, columns, rows] do not overlap.
void transpose(const void* in, void* out, int64_t num_matrices, int64_t rows, int64_t columns, size_t element_bytes);

}  // namespace tessera::cpu
