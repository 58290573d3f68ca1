// The consumer warpgroups: 64 features of the tile each, through the tensor cores to global memory.
//
// A thread holds features r and r + 8 of its warp's 16 (r = lane / 4) in the columns 8 j + 2 (lane % 4) + {0, 1}:
// acc[4 j], acc[4 j + 1] of feature r and acc[4 j + 2], acc[4 j + 3] of feature r + 8.
#pragma once

#include <cuda/std/limits>
#include <cuda/std/type_traits>

#include "cuda/cta/element.cuh"
#include "cuda/cta/operand.cuh"
#include "cuda/kernels/implicit_gemm/kernel.cuh"
#include "cuda/ptx/warp.cuh"

namespace tessera::kernels::implicit_gemm {

// What becomes of a sum: scale, bias and activation of one feature.
struct Finish {
  float scale;
  float bias;
  bool relu;

  __device__ Finish(const TaskParams& task, int32_t feature)
      : scale(task.scale),
        bias(task.bias != nullptr && feature < task.out_features ? task.bias[feature] : 0.0f),
        relu(task.relu != 0) {}

  __device__ float operator()(float sum) const {
    const float value = __fadd_rn(__fmul_rn(sum, scale), bias);
    return relu ? ptx::max_or_nan(value, 0.0f) : value;
  }
};

// Maxima of a thread's two features over the columns of one record.
struct Maxima {
  static constexpr float kNone = -::cuda::std::numeric_limits<float>::infinity();
  float low = kNone;   // feature r
  float high = kNone;  // feature r + 8

  __device__ void add(float low_value, float high_value) {
    low = ptx::max_or_nan(low, low_value);
    high = ptx::max_or_nan(high, high_value);
  }
  // Over the four lanes that hold a column group.
  __device__ void reduce() {
#pragma unroll
    for (int mask = 1; mask <= 2; mask *= 2) {
      low = ptx::max_or_nan(low, __shfl_xor_sync(0xFFFFFFFFu, low, mask));
      high = ptx::max_or_nan(high, __shfl_xor_sync(0xFFFFFFFFu, high, mask));
    }
  }
};

// The columns of a tile's records. One record after the other: begin(i) .. begin(i) + width.
struct Segments {
  int32_t count;
  int32_t per_half;
  int32_t half_columns;
  int32_t width;

  __device__ int32_t begin(int32_t i) const {
    if (i >= count) return 2 * kHalfColumns;  // beyond every column
    const int32_t half = i >= per_half ? 1 : 0;
    return half * half_columns + (i - half * per_half) * width;
  }
};

// Calls done(record in tile, maxima) for every record whose columns end in the accumulators. All lanes agree on the
// path: only which of their columns count differs.
template <class Done>
__device__ inline void pool_columns(const Accumulators& acc, const Segments& segments, const Done& done) {
  const int lane_column = static_cast<int>(threadIdx.x) % 4 * 2;
  int32_t segment = 0;
  int32_t begin = segments.begin(0);
  int32_t end = begin + segments.width;
  Maxima maxima;
#pragma unroll
  for (int j = 0; j < 32; ++j) {
    const int column = 8 * j + lane_column;
    while (begin < 8 * (j + 1)) {
      if (column >= begin && column < end) maxima.add(acc[4 * j], acc[4 * j + 2]);
      if (column + 1 >= begin && column + 1 < end) maxima.add(acc[4 * j + 1], acc[4 * j + 3]);
      if (end > 8 * (j + 1)) break;
      maxima.reduce();
      done(segment, maxima);
      maxima = Maxima();
      ++segment;
      begin = segments.begin(segment);
      end = begin + segments.width;
    }
  }
}

// A warp's staging buffer as fp32: 16 features a row, a column or record a row. The padding keeps the lanes of a column
// group in different banks.
inline constexpr int kStagedRowFloats = 20;
inline constexpr int kStagedColumns = 32;
static_assert(kMaxRecordsPerTile * 16 * sizeof(float) <= kStagingBytes);
static_assert(kStagedColumns * kStagedRowFloats * sizeof(float) <= kStagingBytes);

// Staged sums of `count` records (row after row of `row_floats`) to memory, value by value, in any kind.
__device__ inline void store_staged(const float* staged, int row_floats, int32_t count, const TaskParams& task,
                                    int32_t warp_feature, int64_t record_begin, int64_t num_records) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int32_t feature = warp_feature + lane % 16;
  if (feature >= task.out_features) return;
  const Finish finish(task, feature);
  const int64_t left = num_records - record_begin;
  const int32_t end = left < count ? static_cast<int32_t>(left) : count;
#pragma unroll 1
  for (int32_t i = lane / 16; i < end; i += 2) {
    cta::store_operand(task.out, (record_begin + i) * task.out.stride + feature,
                       finish(staged[i * row_floats + lane % 16]));
  }
}

// Plain products of any kind.
__device__ inline void store_values(uint8_t (&staging)[kStagingBytes], const TaskParams& task, const Accumulators& acc,
                                    int32_t warp_feature, int64_t record_begin, int64_t num_records) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  auto* staged = reinterpret_cast<float*>(staging);
  constexpr int kGroups = kStagedColumns / 8;
#pragma unroll
  for (int pass = 0; pass < 32 / kGroups; ++pass) {
    __syncwarp();  // the previous pass has been read
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* row = staged + (8 * j + lane % 4 * 2 + i) * kStagedRowFloats;
        row[lane / 4] = acc[4 * (pass * kGroups + j) + i];
        row[lane / 4 + 8] = acc[4 * (pass * kGroups + j) + 2 + i];
      }
    }
    __syncwarp();  // the staged values are read by other lanes
    store_staged(staged, kStagedRowFloats, kStagedColumns, task, warp_feature, record_begin + pass * kStagedColumns,
                 num_records);
  }
}

// Offset in a warp's staging buffer of 8 features (chunk 0 or 1) of a column. Chunks change places every four rows, so
// that the eight rows of a matrix touch every bank once.
__device__ inline uint32_t staging_offset(uint32_t column, uint32_t chunk) {
  return column * kStagingRowBytes + ((chunk ^ (column / 4 % 2)) * cta::kChunkBytes);
}

// Plain products of 16 bits: transposed through shared memory, 16 bytes of a record's features a lane.
template <class Element>
__device__ inline void store_transposed(uint8_t (&staging)[kStagingBytes], const TaskParams& task,
                                        const Accumulators& acc, int32_t warp_feature, int64_t record_begin,
                                        int64_t num_records) {
  const uint32_t lane = threadIdx.x % 32;
  const int32_t lane_feature = warp_feature + static_cast<int32_t>(lane / 4);
  const Finish low(task, lane_feature), high(task, lane_feature + 8);
  auto* out = static_cast<Element*>(task.out.data);
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    __syncwarp();  // the previous pass has been read
#pragma unroll
    for (int jj = 0; jj < 8; ++jj) {
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int value = 64 * pass + 8 * jj + 2 * i;
        const Finish& finish = i % 2 == 0 ? low : high;
        packed[i] = cta::pack2(Element{}, finish(acc[value]), finish(acc[value + 1]));
      }
      // Matrices 0 and 1: features 0..7 and 8..15 of columns 16 jj .. + 7; matrices 2 and 3: of the eight after them.
      const uint32_t column = 16 * jj + lane / 16 * 8 + lane % 8;
      ptx::stmatrix_x4_transposed(cta::smem_address(staging) + staging_offset(column, lane / 8 % 2), packed[0],
                                  packed[1], packed[2], packed[3]);
    }
    __syncwarp();  // the staged rows are read by other lanes
    const uint32_t chunk = lane % 2;
    const int32_t feature = warp_feature + static_cast<int32_t>(chunk) * 8;
#pragma unroll 4
    for (uint32_t column = lane / 2; column < kStagingColumns; column += 16) {
      const int64_t record = record_begin + kStagingColumns * pass + column;
      if (record >= num_records || feature >= task.out_features) continue;
      const uint4 value = *reinterpret_cast<const uint4*>(staging + staging_offset(column, chunk));
      *reinterpret_cast<uint4*>(out + record * task.out.stride + feature) = value;
    }
  }
}

template <class C>
__device__ inline void store_plain(uint8_t (&staging)[kStagingBytes], const TaskParams& task, const Accumulators& acc,
                                   int32_t warp_feature, int64_t record_begin, int64_t num_records) {
  using Element = typename C::Element;
  constexpr cta::Operand kKind = ::cuda::std::is_same_v<Element, __half> ? cta::Operand::f16 : cta::Operand::bf16;
  if (task.out.kind == kKind && task.out_features % 8 == 0 && reinterpret_cast<uintptr_t>(task.out.data) % 16 == 0) {
    store_transposed<Element>(staging, task, acc, warp_feature, record_begin, num_records);
  } else {
    store_values(staging, task, acc, warp_feature, record_begin, num_records);
  }
}

template <class C>
__device__ inline void multiply_pass(SharedStorage<C>& smem, cta::RingPosition<C::kStages>& ring, int num_columns,
                                     int num_k_steps, int warpgroup, Accumulators& acc) {
  using Element = typename C::Element;
  switch (num_columns) {
    case 224: return cta::multiply_k_steps<Element, 224, C::kCluster>(smem, ring, num_k_steps, warpgroup, acc);
    case 240: return cta::multiply_k_steps<Element, 240, C::kCluster>(smem, ring, num_k_steps, warpgroup, acc);
    default: return cta::multiply_k_steps<Element, 256, C::kCluster>(smem, ring, num_k_steps, warpgroup, acc);
  }
}

// Sums of a tile of windows, pass after pass, and the maxima of its records.
template <class C>
__device__ inline void pool_tile(SharedStorage<C>& smem, cta::RingPosition<C::kStages>& ring, const TaskParams& task,
                                 uint8_t (&staging)[kStagingBytes], int num_k_steps, int warpgroup, Accumulators& acc) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const TileShape& shape = task.shape;
  auto* staged = reinterpret_cast<float*>(staging);
  for (int32_t pass = 0; pass < shape.num_passes; ++pass) {
    multiply_pass<C>(smem, ring, shape.num_columns(), num_k_steps, warpgroup, acc);
    Segments segments{2 * shape.records_per_half, shape.records_per_half, shape.half_columns, shape.windows};
    if (shape.records_per_half == 0) {
      const int32_t left = shape.windows - pass * 2 * shape.half_columns;
      segments = {1, 1, 0, left < 2 * shape.half_columns ? left : 2 * shape.half_columns};
    }
    __syncwarp();  // the previous tile's staged values have been read
    pool_columns(acc, segments, [&](int32_t segment, Maxima maxima) {
      if (lane % 4 != 0) return;
      float* row = staged + segment * 16;
      if (pass > 0) maxima.add(row[lane / 4], row[lane / 4 + 8]);
      row[lane / 4] = maxima.low;
      row[lane / 4 + 8] = maxima.high;
    });
  }
  __syncwarp();  // the staged values are read by other lanes
}

template <class C>
__device__ inline void consume(SharedStorage<C>& smem, const Params& params, int warpgroup) {
  const int warp_in_group = static_cast<int>(threadIdx.x) / 32 % 4;
  auto& staging = smem.staging[warpgroup * 4 + warp_in_group];
  cta::RingPosition<C::kStages> ring;
  TileWalk walk(params);
  Tile tile;
  Accumulators acc;
  while (walk.next(tile)) {
    const TaskParams& task = params.tasks[tile.task];
    const int num_k_steps = params.num_products * task.taps * task.channel_steps;
    const int32_t warp_feature = tile.feature_begin + warpgroup * cta::kWarpgroupRows + warp_in_group * 16;
    if (task.pooled == 0) {
      multiply_pass<C>(smem, ring, task.shape.num_columns(), num_k_steps, warpgroup, acc);
      store_plain<C>(staging, task, acc, warp_feature, tile.record_begin, walk.num_records());
    } else {
      pool_tile<C>(smem, ring, task, staging, num_k_steps, warpgroup, acc);
      store_staged(reinterpret_cast<const float*>(staging), 16, task.shape.records_per_tile(), task, warp_feature,
                   tile.record_begin, walk.num_records());
    }
  }
}

}  // namespace tessera::kernels::implicit_gemm
