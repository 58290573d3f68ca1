// How the scales of e4m3 operands come to the stages of the ring, 4 bytes a cp.async, beside what they scale.
#pragma once

#include <cstdint>

#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/scales.cuh"
#include "cuda/kernels/expert_gemm_rows/context.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/mbarrier.cuh"

namespace tessera::kernels::expert_gemm_rows {

// Those of a unit's weights, by the first kWeightScales lanes of a warp: each of one slab and half. They depend on
// nothing that a kernel before this one writes. Scales of whole rows are none of a stage's: see SlabRows.
template <class C>
class WeightScaleCopy {
 public:
  __device__ explicit WeightScaleCopy(const Context<C>& context)
      : context_(context), lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void select(const Unit& unit) {
    if (!C::kBlocksScaled || lane_ >= kWeightScales) return;
    const Problem& problem = context_.problem;
    const int32_t column = (unit.slab_begin + lane_ / 2) * C::kSlabOutColumns;
    // The first half of a gated slab are the rows that stand first in the weight.
    const int32_t first = C::kGated && problem.gate_up_order == GateUpOrder::up_first ? 1 : 0;
    const int32_t half = C::kGated ? lane_ % 2 ^ first : 0;
    next_ = grouped::weight_scales<C::kRole>(problem, unit.expert, column / kScaleGroup, half);
  }

  // Of the next blocks of K, and arrives at their stage's barrier.
  __device__ void load(int first_block, int num_blocks, uint64_t* full) {
    if (!C::kBlocksScaled || lane_ >= kWeightScales) return;
    const Ring& ring = context_.ring;
    const uint32_t data = cta::smem_address(ring.data) + lane_ * static_cast<int>(sizeof(float));
#pragma unroll
    for (int i = 0; i < C::kStageBlocks; ++i)
      if (i < num_blocks) ptx::cp_async_4(data + ring.scales_offset(first_block + i), next_++);
    ptx::cp_async_arrive_noinc(full);
  }

 private:
  const Context<C>& context_;
  const int lane_;
  const float* next_ = nullptr;
};

// Those of a unit's rows, a row a thread. Whoever copies the rows arrives at the barrier.
template <class C>
class RowScaleCopy {
 public:
  // `thread`: of those that copy rows, of which there are at least as many as a pass has rows.
  __device__ RowScaleCopy(const Context<C>& context, int thread) : context_(context), thread_(thread) {
    static_assert(32 * kRowWarps >= kPolicy.max_columns);
  }

  __device__ void select(const Unit& unit) {
    const Problem& problem = context_.problem;
    has_row_ = thread_ < unit.num_rows;
    if (!has_row_) return;
    const int32_t pair = context_.plan.row_pair[unit.row_begin + thread_];
    next_ = C::kRole == Role::down ? problem.intermediate_scales + pair
                                   : problem.token_scales + pair / problem.routing.num_slots;
  }

  __device__ void load(int block) {
    if (!has_row_) return;
    const uint32_t scales = cta::smem_address(context_.ring.data) + context_.ring.scales_offset(block);
    ptx::cp_async_4(scales + (kWeightScales + thread_) * static_cast<int>(sizeof(float)), next_);
    next_ += context_.problem.scale_stride;
  }

 private:
  const Context<C>& context_;
  const int thread_;
  bool has_row_ = false;
  const float* next_ = nullptr;
};

}  // namespace tessera::kernels::expert_gemm_rows
