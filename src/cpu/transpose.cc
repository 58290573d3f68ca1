#include "cpu/transpose.h"

#include <algorithm>

#include "core/stop.h"
#include "tessera/core/check.h"

namespace tessera::cpu {
namespace {

constexpr int64_t kTile = 64;  // lines of a tile's rows in both matrices stay in the first-level cache

template <class T>
void transpose_matrix(const T* in, T* out, int64_t rows, int64_t columns) {
  for (int64_t row_begin = 0; row_begin < rows; row_begin += kTile) {
    const int64_t row_end = std::min(rows, row_begin + kTile);
    for (int64_t column_begin = 0; column_begin < columns; column_begin += kTile) {
      const int64_t column_end = std::min(columns, column_begin + kTile);
      for (int64_t column = column_begin; column < column_end; ++column) {
        for (int64_t row = row_begin; row < row_end; ++row) out[column * rows + row] = in[row * columns + column];
      }
    }
  }
}

template <class T>
void transpose_all(const void* in, void* out, int64_t num_matrices, int64_t rows, int64_t columns) {
  for (int64_t matrix = 0; matrix < num_matrices; ++matrix) {
    throw_if_stopped();
    const int64_t begin = matrix * rows * columns;
    transpose_matrix(static_cast<const T*>(in) + begin, static_cast<T*>(out) + begin, rows, columns);
  }
}

}  // namespace

void transpose(const void* in, void* out, int64_t num_matrices, int64_t rows, int64_t columns, size_t element_bytes) {
  TESSERA_CHECK(element_bytes == 2 || element_bytes == 4, element_bytes);
  if (element_bytes == 2) return transpose_all<uint16_t>(in, out, num_matrices, rows, columns);
  transpose_all<uint32_t>(in, out, num_matrices, rows, columns);
}

}  // namespace tessera::cpu
