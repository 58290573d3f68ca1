// Transpose of 16-bit matrices through shared memory: 16-byte loads along the rows, 16-byte stores along the columns.
#pragma once

#include <cstdint>

#include "cuda/kernels/transpose/policy.h"

namespace tessera::kernels::transpose {

inline constexpr Policy kPolicy = default_policy();
inline constexpr int kChunkElements = 8;
inline constexpr int kTileChunks = kPolicy.tile / kChunkElements;
static_assert(kPolicy.tile * kTileChunks % kPolicy.threads == 0);

struct Params {
  const uint4* in;  // [num_matrices, rows, columns / 8]
  uint4* out;       // [num_matrices, columns, rows / 8]
  int32_t rows;
  int32_t columns;
};

// Two elements more than a tile has: the words of one column lie in 32 different banks.
using Tile = uint16_t[kPolicy.tile][kPolicy.tile + 2];

__device__ inline void load_tile(Tile& tile, const Params& params, int64_t matrix, int32_t row_begin,
                                 int32_t column_begin) {
  for (int i = threadIdx.x; i < kPolicy.tile * kTileChunks; i += kPolicy.threads) {
    const int row = i / kTileChunks;
    const int chunk = i % kTileChunks;
    if (row_begin + row >= params.rows || column_begin + chunk * kChunkElements >= params.columns) continue;
    const int64_t place = (matrix * params.rows + row_begin + row) * params.columns + column_begin;
    const uint4 value = __ldcs(&params.in[place / kChunkElements + chunk]);
    const uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      // Rows are 132 bytes apart: words are aligned, chunks are not.
      *reinterpret_cast<uint32_t*>(&tile[row][chunk * kChunkElements + 2 * j]) = words[j];
    }
  }
}

__device__ inline void store_tile(const Tile& tile, const Params& params, int64_t matrix, int32_t row_begin,
                                  int32_t column_begin) {
  for (int i = threadIdx.x; i < kPolicy.tile * kTileChunks; i += kPolicy.threads) {
    const int column = i / kTileChunks;
    const int first = i % kTileChunks * kChunkElements;  // of the 8 rows that become one chunk
    if (column_begin + column >= params.columns || row_begin + first >= params.rows) continue;
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      words[j] = tile[first + 2 * j][column] | static_cast<uint32_t>(tile[first + 2 * j + 1][column]) << 16;
    }
    const int64_t place = (matrix * params.columns + column_begin + column) * params.rows + row_begin + first;
    params.out[place / kChunkElements] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

__global__ void __launch_bounds__(kPolicy.threads) transpose_kernel(const __grid_constant__ Params params) {
  __shared__ Tile tile;
  const auto column_begin = static_cast<int32_t>(blockIdx.x) * kPolicy.tile;
  const auto row_begin = static_cast<int32_t>(blockIdx.y) * kPolicy.tile;
  const int64_t matrix = blockIdx.z;
  load_tile(tile, params, matrix, row_begin, column_begin);
  __syncthreads();  // the whole tile is in shared memory, for every thread
  store_tile(tile, params, matrix, row_begin, column_begin);
}

}  // namespace tessera::kernels::transpose
