// Inputs to operand rows. Both kernels move bytes: HBM is the bound.
//
// convert: a thread takes 8 channels x kVector positions (4 if S is a multiple of 4, else 1) and turns them over in its
// registers; nothing passes through shared memory. A warp with S = 16:
//
//        lane            0..3        4..7      ...   28..31
//        positions     0-3 .. 12-15  the same         the same       8 loads of 16 bytes a lane, one a channel:
//        channels         0-7        8-15      ...   56-63           4 KiB of one record in a row
//
//   -> 4 stores of 16 bytes a lane, one a position: 8 lanes fill 128 bytes of a row
//
// gather: a warp takes 32 * chunks_in_flight chunks of 16 bytes of one row, every plane of it.
#pragma once

#include <cstdint>

#include "cuda/cta/operand_chunk.cuh"
#include "cuda/kernels/operand_rows/policy.h"
#include "cuda/ptx/cluster.cuh"

namespace tessera::kernels::operand_rows {

inline constexpr Policy kPolicy = default_policy();
inline constexpr int kLanes = 32;
inline constexpr int kThreads = kPolicy.warps * kLanes;
inline constexpr int kGroupChannels = 8;
inline constexpr int kSegmentChunks = kLanes * kPolicy.chunks_in_flight;

struct ConvertParams {
  const float* embeddings;  // [N, C, S]
  cta::OperandView rows;    // [N * S, stride]
  uint8_t* finite;          // [N], holds 1
  int64_t num_tiles;        // N * tiles_per_record: a tile is what a warp does
  int32_t tiles_per_record;
  int32_t position_tiles;  // tiles along positions; they change fastest
  int32_t position_lanes;  // 1, 2 or 4
  int32_t channels;        // C
  int32_t positions;       // S
  int32_t num_groups;      // stride / 8
};

// kVector neighbouring positions of one channel. Single values lie among what the neighbouring lanes and warps read
// too, so they are kept in L1.
template <int kVector>
__device__ inline void load_positions(const float* source, float (&values)[kVector]) {
  if constexpr (kVector == 4) {
    const float4 four = __ldcs(reinterpret_cast<const float4*>(source));
    values[0] = four.x;
    values[1] = four.y;
    values[2] = four.z;
    values[3] = four.w;
  } else {
    static_assert(kVector == 1);
    values[0] = __ldg(source);
  }
}

template <int kVector>
__global__ void __launch_bounds__(kThreads) convert_kernel(const __grid_constant__ ConvertParams params) {
  ptx::launch_dependents();
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kPolicy.warps + threadIdx.x / kLanes;
  if (tile >= params.num_tiles) return;
  const int64_t record = tile / params.tiles_per_record;
  const int32_t tile_in_record = static_cast<int32_t>(tile - record * params.tiles_per_record);
  const int32_t group_tile = tile_in_record / params.position_tiles;
  const int32_t position_tile = tile_in_record - group_tile * params.position_tiles;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % kLanes);
  const int32_t group_lane = lane / params.position_lanes;
  const int32_t position_lane = lane - group_lane * params.position_lanes;
  const int32_t group = group_tile * (kLanes / params.position_lanes) + group_lane;
  const int32_t position = (position_tile * params.position_lanes + position_lane) * kVector;
  if (group >= params.num_groups || position >= params.positions) return;

  float values[kGroupChannels][kVector] = {};
  const int32_t channel = group * kGroupChannels;
  const float* source = params.embeddings + (record * params.channels + channel) * params.positions + position;
#pragma unroll
  for (int j = 0; j < kGroupChannels; ++j) {
    if (channel + j < params.channels) load_positions(source + static_cast<int64_t>(j) * params.positions, values[j]);
  }
  uint32_t largest = 0;
  const int64_t first = (record * params.positions + position) * params.rows.stride + channel;
#pragma unroll
  for (int p = 0; p < kVector; ++p) {
    float row[kGroupChannels];
#pragma unroll
    for (int j = 0; j < kGroupChannels; ++j) {
      row[j] = values[j][p];
      largest = max(largest, cta::magnitude_bits(row[j]));
    }
    cta::store_operands(params.rows, first + p * params.rows.stride, row);
  }
  // Several threads may write this: all the same byte.
  if (largest > cta::largest_magnitude_bits(params.rows.kind)) params.finite[record] = 0;
}

struct GatherParams {
  const int32_t* ids;    // [num_rows]
  const uint4* table;    // [planes][V, row_chunks]
  uint4* rows;           // [planes][num_rows, row_chunks]
  int64_t table_plane;   // chunks from plane to plane
  int64_t rows_plane;    //
  int64_t num_segments;  // num_rows * row_segments: a segment is what a warp copies
  int32_t row_segments;  //
  int32_t row_chunks;    // stride in chunks of 16 bytes
  int32_t num_planes;    //
};

__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ GatherParams params) {
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const int64_t segment = static_cast<int64_t>(blockIdx.x) * kPolicy.warps + threadIdx.x / kLanes;
  if (segment >= params.num_segments) return;
  const int64_t row = segment / params.row_segments;
  const int32_t column = static_cast<int32_t>(segment - row * params.row_segments) * kSegmentChunks +
                         static_cast<int32_t>(threadIdx.x % kLanes);
  const uint4* source = params.table + static_cast<int64_t>(params.ids[row]) * params.row_chunks + column;
  uint4* target = params.rows + row * params.row_chunks + column;
  for (int32_t plane = 0; plane < params.num_planes; ++plane) {
    uint4 chunk[kPolicy.chunks_in_flight];
#pragma unroll
    for (int i = 0; i < kPolicy.chunks_in_flight; ++i) {
      if (column + i * kLanes < params.row_chunks) chunk[i] = __ldg(source + i * kLanes);
    }
#pragma unroll
    for (int i = 0; i < kPolicy.chunks_in_flight; ++i) {
      if (column + i * kLanes < params.row_chunks) target[i * kLanes] = chunk[i];
    }
    source += params.table_plane;
    target += params.rows_plane;
  }
}

}  // namespace tessera::kernels::operand_rows
