// Three kinds of task that no GEMM library batches: ragged segment sums, element-wise GELU, small GEMMs of any M, N, K.
#pragma once

#include <cstdint>

#include "tessera/batching/launch.cuh"

namespace tessera::bench {

enum class TaskKind : int32_t { segment_sum, gelu, gemm };

struct MixedTask {
  TaskKind kind;
  int32_t m, n, k;  // gemm: C[m, n] = A[m, k] B[k, n]; gelu: n elements; segment_sum: n segments
  const float* a;
  const float* b;
  const int32_t* offsets;  // segment_sum: [n + 1]
  float* out;
};

inline constexpr int kMixedThreads = 256;
inline constexpr int kGemmTile = 64;
inline constexpr int kGemmDepth = 16;
inline constexpr int kGeluTile = 4096;
inline constexpr int kSegmentsPerTile = kMixedThreads / 32;

inline int32_t mixed_tiles(const MixedTask& task) {
  switch (task.kind) {
    case TaskKind::segment_sum: return (task.n + kSegmentsPerTile - 1) / kSegmentsPerTile;
    case TaskKind::gelu: return (task.n + kGeluTile - 1) / kGeluTile;
    default: return (task.m + kGemmTile - 1) / kGemmTile * ((task.n + kGemmTile - 1) / kGemmTile);
  }
}

// One warp a segment.
__device__ inline void segment_sum_tile(const MixedTask& task, int32_t tile) {
  const int32_t segment = tile * kSegmentsPerTile + static_cast<int32_t>(threadIdx.x) / 32;
  if (segment >= task.n) return;
  float sum = 0.0f;
  for (int32_t i = task.offsets[segment] + static_cast<int32_t>(threadIdx.x) % 32; i < task.offsets[segment + 1];
       i += 32)
    sum += task.a[i];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
  if (threadIdx.x % 32 == 0) task.out[segment] = sum;
}

__device__ inline void gelu_tile(const MixedTask& task, int32_t tile) {
#pragma unroll 4
  for (int32_t i = 0; i < kGeluTile; i += kMixedThreads) {
    const int32_t index = tile * kGeluTile + i + static_cast<int32_t>(threadIdx.x);
    if (index < task.n) task.out[index] = 0.5f * task.a[index] * (1.0f + erff(task.a[index] * 0.70710678f));
  }
}

// 64 x 64 of C, 4 x 4 a thread, operands staged in shared memory 16 deep.
__device__ inline void gemm_tile(const MixedTask& task, int32_t tile) {
  __shared__ float a_part[kGemmDepth][kGemmTile + 4];
  __shared__ float b_part[kGemmDepth][kGemmTile];
  const int32_t tiles_n = (task.n + kGemmTile - 1) / kGemmTile;
  const int32_t row0 = tile / tiles_n * kGemmTile;
  const int32_t column0 = tile % tiles_n * kGemmTile;
  const int tx = static_cast<int>(threadIdx.x) % 16;
  const int ty = static_cast<int>(threadIdx.x) / 16;
  float acc[4][4] = {};
  for (int32_t k0 = 0; k0 < task.k; k0 += kGemmDepth) {
    for (int i = static_cast<int>(threadIdx.x); i < kGemmTile * kGemmDepth; i += kMixedThreads) {
      const int32_t row = row0 + i / kGemmDepth;
      const int32_t depth = k0 + i % kGemmDepth;
      a_part[i % kGemmDepth][i / kGemmDepth] = row < task.m && depth < task.k ? task.a[row * task.k + depth] : 0.0f;
      const int32_t b_depth = k0 + i / kGemmTile;
      const int32_t column = column0 + i % kGemmTile;
      b_part[i / kGemmTile][i % kGemmTile] =
          b_depth < task.k && column < task.n ? task.b[b_depth * task.n + column] : 0.0f;
    }
    __syncthreads();  // both parts are complete
    for (int d = 0; d < kGemmDepth; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] += a_part[d][ty * 4 + i] * b_part[d][tx * 4 + j];
      }
    }
    __syncthreads();  // both parts have been read
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int32_t row = row0 + ty * 4 + i;
      const int32_t column = column0 + tx * 4 + j;
      if (row < task.m && column < task.n) task.out[row * task.n + column] = acc[i][j];
    }
  }
}

struct Mixed {
  struct Params {
    const MixedTask* tasks;  // [num_tasks]
  };
  static constexpr int kThreads = kMixedThreads;

  static __device__ void run_tile(const Params& params, batching::TileCoord tile) {
    const MixedTask& task = params.tasks[tile.task_idx];
    switch (task.kind) {
      case TaskKind::segment_sum: return segment_sum_tile(task, tile.tile_idx);
      case TaskKind::gelu: return gelu_tile(task, tile.tile_idx);
      case TaskKind::gemm: return gemm_tile(task, tile.tile_idx);
    }
  }
};

}  // namespace tessera::bench
