// The scales of e4m3 operands: one fp32 for each 128 columns of a row of A, one for each 128 x 128 block of a weight.
// Where they lie, and how those of a tile's step of K come into shared memory beside its stage.
#pragma once

#include <cstdint>

#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/ptx/copy.cuh"
#include "tessera/core/e4m3.h"

namespace tessera::grouped {

// The scales, one for each block of K, of 128 weight rows of an expert of the plan: of gated weights, block `n_block`
// of half `half` (0: gate); of others n_block alone counts. Of blocks that the weight has not: those of its last.
template <Role kRole>
__device__ inline const float* weight_scales(const Problem& problem, int32_t expert, int32_t n_block, int32_t half) {
  constexpr int32_t kHalves = kRole == Role::gate_up ? 2 : 1;
  const int32_t row_blocks = scale_groups(problem.out_columns(kRole));
  const int32_t k_blocks = scale_groups(problem.sum_length(kRole));
  const int32_t block = min(n_block, row_blocks - 1);
  if (expert < problem.num_experts) {
    const float* const scales = kRole == Role::down ? problem.down_scale : problem.gate_up_scale;
    return scales + ((static_cast<int64_t>(expert) * kHalves + half) * row_blocks + block) * k_blocks;
  }
  // A slice of the shared experts': blocks of rows of the first weight, of columns of the second.
  const int64_t slice = expert - problem.num_experts;
  const int64_t slices = problem.num_shared_experts;
  if constexpr (kRole == Role::down) return problem.shared_down_scale + (block * slices + slice) * k_blocks;
  return problem.shared_gate_up_scale + ((half * slices + slice) * row_blocks + block) * k_blocks;
}

// Of one step of K, a block of scales. Rows begin at row_offset(tile) of `rows`.
struct StageScales {
  float rows[kTileScales];
  float waves[2];  // of the two blocks of weight rows
  float padding[2];
};

// Row scales lie column by column of blocks, so that a tile's are one piece, from the 16 bytes on in which it begins.
__device__ inline int32_t row_offset(const TileSlot& tile) { return tile.row_begin % kScaleAlignment; }

// Lanes of the loading warp that copy, its last two: the weights' scales.
inline constexpr int kScaleCopyLanes = 2;

// Copies a tile's scales, a step of K at a time, by the loading warp: its first lane has the rows' brought in one
// piece, the last two copy the weights', 4 bytes each. (Reading them in the multiplying warps cost a quarter of the
// kernel's time: a load that comes late holds up the products.) Without waves the weights' are none of a step's.
template <Role kRole, bool kHasWaves>
class ScaleCopy {
 public:
  __device__ ScaleCopy(StageScales* stages, const Problem& problem)
      : stages_(stages),
        problem_(problem),
        rows_(kRole == Role::down ? problem.intermediate_scales : problem.token_scales) {}

  __device__ void select(const TileSlot& tile) {
    row_ = tile.row_begin - row_offset(tile);
    if constexpr (!kHasWaves) return;
    const int wave = wave_of_lane();
    if (wave < 0) return;
    constexpr bool kGated = kRole == Role::gate_up;
    wave_ =
        weight_scales<kRole>(problem_, tile.expert, kGated ? tile.n_block : 2 * tile.n_block + wave, kGated ? wave : 0);
  }

  // Of the next step; also arrives on `full`, whose bytes have been announced.
  __device__ void load(int stage, uint64_t* full) {
    StageScales& target = stages_[stage];
    if (threadIdx.x % 32 == 0) ptx::bulk_load(target.rows, rows_ + row_, sizeof(target.rows), full);
    row_ += problem_.scale_stride;
    if constexpr (!kHasWaves) return;
    const int wave = wave_of_lane();
    if (wave < 0) return;
    ptx::cp_async_4(cta::smem_address(target.waves + wave), wave_++);
    ptx::cp_async_arrive_noinc(full);
  }

 private:
  __device__ static int wave_of_lane() { return static_cast<int>(threadIdx.x % 32) - (32 - kScaleCopyLanes); }

  StageScales* stages_;
  const Problem& problem_;
  const float* rows_;
  int64_t row_ = 0;
  const float* wave_ = nullptr;
};

// Of operands without scales.
struct NoStageScales {};
struct NoScaleCopy {
  __device__ void select(const TileSlot&) {}
  __device__ void load(int, uint64_t*) {}
};

}  // namespace tessera::grouped
