// The scales of e4m3 operands: one fp32 for each 128 columns of a row of A, one for each 128 x 128 block of a weight.
// Where they lie, and how those of a tile's step of K come into shared memory beside its stage.
#pragma once

#include <cstdint>

#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/ptx/copy.cuh"

namespace tessera::grouped {

inline constexpr int32_t kScaleBlock = 128;

__device__ inline int32_t scale_blocks(int32_t extent) { return (extent + kScaleBlock - 1) / kScaleBlock; }

// Where the scales of row `row` of a tile of GEMM 1 begin among token_scales, one for each block of K. 32 bits do: an
// index of a token's codes has 31.
__device__ inline int32_t row_scales(const Problem& problem, const TileSlot& tile, int32_t row) {
  // Rows that the tile has not are multiplied too, and never stored. A CTA without a column block has no row at all.
  const int32_t routed_row = tile.row_begin + max(min(row, tile.num_rows - 1), 0);
  return problem.plan.row_token[routed_row] * scale_blocks(problem.hidden_size);
}

// The scales, one for each block of K, of 128 weight rows of a tile's expert: of gated weights, block `n_block` of half
// `half` (0: gate); of others n_block alone counts. Of blocks that the weight has not: those of its last.
template <Role kRole>
__device__ inline const float* weight_scales(const Problem& problem, const TileSlot& tile, int32_t n_block,
                                             int32_t half) {
  constexpr int32_t kHalves = kRole == Role::gate_up ? 2 : 1;
  const int32_t row_blocks = scale_blocks(problem.out_columns(kRole));
  const int32_t k_blocks = scale_blocks(problem.sum_length(kRole));
  const int32_t block = min(n_block, row_blocks - 1);
  if (tile.expert < problem.num_experts) {
    const float* const scales = kRole == Role::down ? problem.down_scale : problem.gate_up_scale;
    return scales + ((static_cast<int64_t>(tile.expert) * kHalves + half) * row_blocks + block) * k_blocks;
  }
  // A slice of the shared experts': blocks of rows of the first weight, of columns of the second.
  const int64_t slice = tile.expert - problem.num_experts;
  const int64_t slices = problem.num_shared_experts;
  if constexpr (kRole == Role::down) return problem.shared_down_scale + (block * slices + slice) * k_blocks;
  return problem.shared_gate_up_scale + ((half * slices + slice) * row_blocks + block) * k_blocks;
}

// Of one step of K, a block of scales. Rows begin at row_offset(tile) of `rows`.
struct StageScales {
  float rows[kScaleBlock + 4];
  float waves[2];  // of the two blocks of weight rows
  float padding[2];
};

// GEMM 2's row scales lie column by column of blocks, so that a tile's are one piece, from the 16 bytes on in which it
// begins.
inline constexpr int32_t kScaleAlignment = 4;
template <Role kRole>
__device__ inline int32_t row_offset(const TileSlot& tile) {
  return kRole == Role::down ? tile.row_begin % kScaleAlignment : 0;
}

// Threads of GEMM 2's loading warp that copy: its last two, for the weights.
inline constexpr int kScaleCopyLanes = 2;

// Copies a tile's scales, a step of K at a time. In GEMM 1, kThreads threads: each those of some rows, 4 bytes a
// cp.async, the last two those of the weights. In GEMM 2 a warp: its first lane has the rows' brought in one piece.
// (Reading them in the multiplying warps cost a quarter of the kernel's time: a load that comes late holds up the
// products.)
template <Role kRole, int kThreads>
class ScaleCopy {
 public:
  __device__ ScaleCopy(StageScales* stages, const Problem& problem, int thread)
      : stages_(stages), problem_(problem), thread_(thread) {}

  __device__ void select(const TileSlot& tile) {
    if constexpr (kRole == Role::down) {
      row_[0] = tile.row_begin - row_offset<kRole>(tile);
    } else {
#pragma unroll
      for (int i = 0; i < kRows; ++i) row_[i] = row_scales(problem_, tile, thread_ + i * kThreads);
    }
    const int wave = thread_ - (kThreads - kScaleCopyLanes);
    if (wave < 0) return;
    constexpr bool kGated = kRole == Role::gate_up;
    wave_ = weight_scales<kRole>(problem_, tile, kGated ? tile.n_block : 2 * tile.n_block + wave, kGated ? wave : 0);
  }

  // Of the next step. GEMM 2: also arrives on `full`, whose bytes have been announced.
  __device__ void load(int stage, uint64_t* full) {
    StageScales& target = stages_[stage];
    if constexpr (kRole == Role::down) {
      if (thread_ == 0) {
        ptx::bulk_load(target.rows, problem_.intermediate_scales + row_[0], sizeof(target.rows), full);
        row_[0] += problem_.scale_stride;
      }
    } else {
      const uint32_t rows = cta::smem_address(target.rows + thread_);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if ((i + 1) * kThreads <= kScaleBlock || thread_ + i * kThreads < kScaleBlock)
          ptx::cp_async_4(rows + i * kThreads * static_cast<uint32_t>(sizeof(float)),
                          problem_.token_scales + row_[i]++);
      }
    }
    const int wave = thread_ - (kThreads - kScaleCopyLanes);
    if (wave < 0) return;
    ptx::cp_async_4(cta::smem_address(target.waves + wave), wave_++);
    if constexpr (kRole == Role::down) ptx::cp_async_arrive_noinc(full);
  }

 private:
  static constexpr int kRows = kRole == Role::down ? 1 : (kScaleBlock + kThreads - 1) / kThreads;

  StageScales* stages_;
  const Problem& problem_;
  int thread_;
  int32_t row_[kRows];
  const float* wave_ = nullptr;
};

// Of operands without scales.
struct NoStageScales {};
struct NoScaleCopy {
  __device__ void select(const TileSlot&) {}
  __device__ void load(int, uint64_t*) {}
};

}  // namespace tessera::grouped
