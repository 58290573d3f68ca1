// From a warpgroup's accumulators to a role's output: bias, activation, 16-bit rows staged in shared memory, stores.
//
// A warp owns 16 rows of the tile. A gated tile's columns are gate columns, then the up columns that belong to them, so
// that a pair lies in one thread, half of the fragment apart.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/cta/element.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/activation.cuh"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/warp.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace tessera::grouped {

// A warp stages 16 rows x 128 columns a pass, as two blocks of 64 columns in the layout of a 128-byte swizzled TMA box.
inline constexpr int kStagingColumns = 128;
inline constexpr int kStagingRows = 16;
inline constexpr int kStagingBlockBytes = kStagingRows * cta::kSwizzleRowBytes;
inline constexpr int kStagingBytes = 2 * kStagingBlockBytes;

// Output columns of a tile of kColumns weight rows.
constexpr int tile_out_columns(Role role, int columns) { return role == Role::gate_up ? columns / 2 : columns; }

// Calls act(j, source, source of the next) for each pair of columns that this thread holds, registers 4 j on: which
// rows of an expert's weight they are. Of slice `slice` of an expert that is `slices` as wide.
template <Role kRole, int kColumns, class Act>
__device__ inline void each_column_pair(const Problem& problem, const TileSlot& tile, int32_t slice, int32_t slices,
                                        Act&& act) {
  constexpr bool kGated = kRole == Role::gate_up;
  constexpr int kGroups = ptx::Fragment<kColumns>::kColumnGroups;
  constexpr int kHalf = kGroups / 2;
  const int32_t front = problem.first_column(kRole);
  const int32_t n = problem.out_columns(kRole) - front;
  const int32_t all = n * slices;
  const GateUpOrder order = problem.gate_up_order;
  // 32 bits do: an expert's own rows.
  const int32_t step = kGated ? static_cast<int32_t>(gate_row(order, 1, all) - gate_row(order, 0, all)) : 1;
  const int32_t first_gate = (kGated ? static_cast<int32_t>(gate_row(order, 0, all)) : 0) + step * n * slice;
  const int32_t first_up = (kGated ? static_cast<int32_t>(up_row(order, 0, all)) : 0) + step * n * slice;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    const int in_half = kGated ? j % kHalf : j;
    const int column =
        tile.n_block * tile_out_columns(kRole, kColumns) + in_half * 8 + static_cast<int>(threadIdx.x % 4) * 2 - front;
    // Both are multiples of 8: the pair is inside or outside together.
    if (static_cast<uint32_t>(column) >= static_cast<uint32_t>(n)) continue;
    const int32_t source = step * column + (kGated && j >= kHalf ? first_up : first_gate);
    act(j, source, source + step);
  }
}

// Adds the bias of the columns this thread holds.
template <Role kRole, class Element, int kColumns>
__device__ inline void add_bias(ptx::Fragment<kColumns>& acc, const Problem& problem, const TileSlot& tile) {
  const int64_t width =
      (kRole == Role::gate_up ? 2 : 1) * static_cast<int64_t>(problem.out_columns(kRole) - problem.first_column(kRole));
  const Element* bias = static_cast<const Element*>(problem.bias(kRole)) + tile.expert * width;
  each_column_pair<kRole, kColumns>(problem, tile, 0, 1, [&](int j, int32_t first, int32_t second) {
    const float b0 = cta::to_float(bias[first]);
    const float b1 = cta::to_float(bias[second]);
    acc[4 * j + 0] = __fadd_rn(acc[4 * j + 0], b0);
    acc[4 * j + 1] = __fadd_rn(acc[4 * j + 1], b1);
    acc[4 * j + 2] = __fadd_rn(acc[4 * j + 2], b0);
    acc[4 * j + 3] = __fadd_rn(acc[4 * j + 3], b1);
  });
}

// Multiplies the sums by the scales of their weight rows.
template <Role kRole, int kColumns>
__device__ inline void scale_columns(ptx::Fragment<kColumns>& acc, const Problem& problem, const TileSlot& tile) {
  constexpr bool kGated = kRole == Role::gate_up;
  const bool is_routed = tile.expert < problem.num_experts;
  const int64_t width = (kGated ? 2 : 1) * static_cast<int64_t>(problem.out_columns(kRole));
  const float* const scales =
      is_routed ? (kRole == Role::down ? problem.down_scale : problem.gate_up_scale) + tile.expert * width
                : (kRole == Role::down ? problem.shared_down_scale : problem.shared_gate_up_scale);
  const bool is_slice = kRole != Role::down && !is_routed;
  const int32_t slice = is_slice ? tile.expert - problem.num_experts : 0;
  each_column_pair<kRole, kColumns>(problem, tile, slice, is_slice ? problem.num_shared_experts : 1,
                                    [&](int j, int32_t first, int32_t second) {
                                      const float s0 = scales[first];
                                      const float s1 = scales[second];
                                      acc[4 * j + 0] = __fmul_rn(acc[4 * j + 0], s0);
                                      acc[4 * j + 1] = __fmul_rn(acc[4 * j + 1], s1);
                                      acc[4 * j + 2] = __fmul_rn(acc[4 * j + 2], s0);
                                      acc[4 * j + 3] = __fmul_rn(acc[4 * j + 3], s1);
                                    });
}

// To the type and back: what is kept in memory between two steps where a layer is told to round like engines.
template <class Element, int kFirst, int kCount, int kColumns>
__device__ inline void round_to(ptx::Fragment<kColumns>& acc) {
#pragma unroll
  for (int i = kFirst; i < kFirst + kCount; i += 2) {
    const float2 rounded = cta::unpack2(Element{}, cta::pack2(Element{}, acc[i], acc[i + 1]));
    acc[i] = rounded.x;
    acc[i + 1] = rounded.y;
  }
}

// In place; the results of a gated tile take the first half of the fragment.
template <Role kRole, int kColumns>
__device__ inline void activate(const Activation& activation, ptx::Fragment<kColumns>& acc) {
  constexpr int kRegisters = ptx::Fragment<kColumns>::kRegisters;
  if constexpr (kRole == Role::gate_up) {
    with_gated(activation, [&](auto act) {
#pragma unroll
      for (int i = 0; i < kRegisters / 2; ++i) acc[i] = act(acc[i], acc[kRegisters / 2 + i]);
    });
  } else if constexpr (kRole == Role::up_only) {
    with_plain(activation, [&](auto act) {
#pragma unroll
      for (int i = 0; i < kRegisters; ++i) acc[i] = act(acc[i]);
    });
  }
}

// Registers to the warp's staging buffer: 16 rows x kPassColumns by stmatrix. Chunk c of row r lies at c ^ (r % 8), as
// TMA expects it, and no bank is met twice.
template <class Element, int kPassColumns, int kColumns>
__device__ inline void stage_pass(uint32_t staging, const ptx::Fragment<kColumns>& acc, int pass) {
  const uint32_t lane = threadIdx.x % 32;
  // Addresses of a block differ by exclusive-or in the chunk bits.
  const uint32_t base =
      ptx::opaque(staging + (lane % 16) * cta::kSwizzleRowBytes + (((lane / 16) ^ (lane % 8)) * cta::kChunkBytes));
#pragma unroll
  for (int jj = 0; jj < kPassColumns / 16; ++jj) {
    uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int value = kPassColumns / 2 * pass + 8 * jj + 2 * i;
      packed[i] = cta::pack2(Element{}, acc[value], acc[value + 1]);
    }
    ptx::stmatrix_x4((base ^ (jj % 4 * 2 * cta::kChunkBytes)) + jj / 4 * kStagingBlockBytes, packed[0], packed[1],
                     packed[2], packed[3]);
  }
}

// Where a warp's 16 rows of a tile go.
struct OutRows {
  const CUtensorMap& map;  // of `data`, in boxes of 16 rows: never more than what an expert surely owns of them
  void* data;              // [max_rows, columns]
  int32_t columns;
  int64_t row;
  int32_t rows_left;  // rows from `row` on that belong to the tile; <= 0: none
  int32_t column_begin;
};

// The rows of 16 that belong to this expert, of kBlocks staged blocks side by side, 16 bytes a lane: a box would
// overwrite the next expert's rows.
template <class Element, int kBlocks>
__device__ inline void store_partial(const uint8_t* staging, const OutRows& out, int column_begin) {
  constexpr int kBlockColumns = cta::kSwizzleRowBytes / sizeof(Element);
  constexpr int kChunkColumns = cta::kChunkBytes / sizeof(Element);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int chunk = lane % 8;
#pragma unroll 1
  for (int i = lane / 8; i < kBlocks * out.rows_left; i += 4) {
    const int block = i % kBlocks;
    const int row = i / kBlocks;
    const int column = column_begin + block * kBlockColumns + chunk * kChunkColumns;
    if (column >= out.columns) continue;
    const uint4 value =
        *reinterpret_cast<const uint4*>(staging + block * kStagingBlockBytes + cta::swizzled_offset(row, chunk));
    *reinterpret_cast<uint4*>(static_cast<Element*>(out.data) + (out.row + row) * out.columns + column) = value;
  }
}

// Writes this warp's 16 rows of the tile, kOutColumns columns, the first of the fragment. TMA reads the staging buffers
// while the next tile is multiplied.
template <class Element, int kOutColumns, int kBuffers, int kColumns>
__device__ inline void store_tile(uint8_t (&staging)[kBuffers][kStagingBytes], const OutRows& out,
                                  const ptx::Fragment<kColumns>& acc) {
  constexpr int kBlockColumns = cta::kSwizzleRowBytes / sizeof(Element);
  constexpr int kPassColumns = kOutColumns < kStagingColumns ? kOutColumns : kStagingColumns;
  constexpr int kBlocks = kPassColumns / kBlockColumns;
  static_assert(kOutColumns % kPassColumns == 0 && kPassColumns % kBlockColumns == 0);
  const bool is_issuer = threadIdx.x % 32 == 0;
#pragma unroll
  for (int pass = 0; pass < kOutColumns / kPassColumns; ++pass) {
    uint8_t* buffer = staging[pass % kBuffers];
    if (pass % kBuffers == 0) {
      if (is_issuer) ptx::bulk_wait_read();
      __syncwarp();  // earlier stores have read the buffers
    }
    stage_pass<Element, kPassColumns>(cta::smem_address(buffer), acc, pass);
    ptx::fence_proxy_async();  // stmatrix wrote through the generic proxy, TMA reads through the async proxy
    __syncwarp();              // all 16 rows are written and fenced
    const int column = out.column_begin + pass * kPassColumns;
    if (out.rows_left >= kStagingRows) {
      if (is_issuer) {
        for (int block = 0; block < kBlocks; ++block) {
          if (column + block * kBlockColumns >= out.columns) continue;
          ptx::tma_store_2d(&out.map, column + block * kBlockColumns, static_cast<int32_t>(out.row),
                            buffer + block * kStagingBlockBytes);
        }
        ptx::bulk_commit();
      }
    } else if (out.rows_left > 0) {
      store_partial<Element, kBlocks>(buffer, out, column);
    }
  }
}

}  // namespace tessera::grouped
