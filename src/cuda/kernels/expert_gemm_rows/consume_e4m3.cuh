// The multiplying warps where operands are e4m3: a warpgroup multiplies all slabs of a unit by WGMMA, whose 13-bit sums
// never run through more than one block of scales, and h leaves quantised.
//
// h has one scale for each row and 128 columns, which are the work of many CTAs: each writes its columns in fp32 and
// counts its slabs, and who comes last quantises them all. A warp of its own does both.
#pragma once

#include <cstdint>
#include <cuda/atomic>

#include "cuda/cta/pipeline.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/lane_elements.cuh"
#include "cuda/kernels/expert_gemm_rows/consume.cuh"
#include "cuda/kernels/expert_gemm_rows/context.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace tessera::kernels::expert_gemm_rows {

using grouped::kGroupLanes;
using grouped::kLaneElements;
using grouped::LaneElements;

// Products of one block of K: the unit's weight rows at `a`, its rows at `b`, both in shared memory.
template <int kColumns>
__device__ inline void multiply_block(uint32_t a, uint32_t b, ptx::Fragment<kColumns>& products) {
  const uint64_t a_desc = cta::wgmma_descriptor(a);
  const uint64_t b_desc = cta::wgmma_descriptor(b);
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < cta::kSwizzleRowBytes / 32; ++i) {
    ptx::wgmma<__nv_fp8_e4m3, kColumns>(products, a_desc + i * cta::kDescriptorKStep,
                                        b_desc + i * cta::kDescriptorKStep, i > 0);
  }
  ptx::wgmma_commit();
}

// Codes and scale of the block of 128 columns at `column` of `num_rows` rows of the plan. `given`: the scale of all,
// null: made of each row. kGroupLanes lanes a row.
__device__ inline void quantize_block(const Problem& problem, const Plan& plan, int32_t row_begin, int32_t num_rows,
                                      int32_t column, const float* given) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t width = problem.intermediate_size;
  const int32_t lane_column = column + lane % kGroupLanes * kLaneElements;
  float* const scales = problem.intermediate_scales + static_cast<int64_t>(column / kScaleGroup) * problem.scale_stride;
#pragma unroll 1
  for (int first = 0; first < num_rows; first += 32 / kGroupLanes) {
    const int row = first + lane / kGroupLanes;
    const int64_t pair = row < num_rows ? plan.row_pair[row_begin + row] : 0;
    const bool exists = row < num_rows && lane_column < width;
    LaneElements elements;
    elements.load(problem.activations + pair * width + lane_column, exists);
    const float amax = elements.group_largest();
    const float scale = given != nullptr ? *given : grouped::group_scale(amax);
    if (exists)
      *reinterpret_cast<uint4*>(static_cast<uint8_t*>(problem.intermediate) + pair * width + lane_column) =
          elements.codes(scale);
    if (row < num_rows && lane % kGroupLanes == 0) scales[pair] = scale;
  }
}

// What a lane of the quantising warp counts: some slabs of a block of 128 columns of a pass's rows.
struct SlabCount {
  int32_t num_slabs = 0;  // 0: nothing to count
  int32_t block_slabs = 0;
  int32_t column = 0;
  int32_t row_begin = 0;
  int32_t num_rows = 0;
  int32_t expert = 0;
};

// part: 0 for the block that the unit's first slab lies in, 1 for the next.
template <class C>
__device__ inline SlabCount slabs_of_block(const Context<C>& context, const Unit& unit, int part) {
  const int32_t width = context.problem.intermediate_size;
  const int32_t unit_begin = unit.slab_begin * C::kSlabOutColumns;
  const int32_t unit_end = min(unit_begin + context.ring.unit_slabs * C::kSlabOutColumns, width);
  const int32_t begin = (unit_begin / kScaleGroup + part) * kScaleGroup;
  const int32_t end = min(begin + kScaleGroup, width);
  const auto slabs_of = [](int32_t columns) { return max((columns + C::kSlabOutColumns - 1) / C::kSlabOutColumns, 0); };
  return {slabs_of(min(unit_end, end) - max(unit_begin, begin)),
          slabs_of(end - begin),
          begin,
          unit.row_begin,
          unit.num_rows,
          unit.expert};
}

// By one warp, beside those that multiply, which would otherwise wait for memory here: counts the slabs of each unit
// when their columns of h are written, and quantises the blocks that are complete by then. Where memory is busy a count
// is answered after microseconds, so units that have ended meanwhile are counted together.
template <class C>
__device__ inline void quantize_finished(const Context<C>& context) {
  const Problem& problem = context.problem;
  Barriers& barriers = *context.ring.barriers;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Handover at;
  auto walk = context.walk();
  Unit unit;
  bool has_unit = walk.next(unit);
  while (has_unit) {
    SlabCount mine;
    for (int i = 0; i < kHandovers && has_unit; ++i) {  // two lanes a unit
      if (i == 0) {
        cta::wait_phase(&barriers.written[at.stage], at.phase);
      } else if (!__all_sync(kAllLanes, ptx::mbarrier_try_wait(&barriers.written[at.stage], at.phase))) {
        break;
      }
      if (lane / 2 == i) mine = slabs_of_block(context, unit, lane % 2);
      __syncwarp();  // all lanes have seen the phase
      if (lane == 0) ptx::mbarrier_arrive(&barriers.counted[at.stage]);
      at.advance();
      has_unit = walk.next(unit);
    }
    bool is_complete = false;
    if (mine.num_slabs > 0) {
      // Whoever sees the count sees the columns, and who finds the block complete sees the others'.
      const ::cuda::atomic_ref<int32_t, ::cuda::thread_scope_device> counter(
          problem.block_arrivals[mine.row_begin * scale_groups(problem.intermediate_size) + mine.column / kScaleGroup]);
      const int32_t before = counter.fetch_add(mine.num_slabs, ::cuda::memory_order_acq_rel);
      is_complete = before + mine.num_slabs == mine.block_slabs;
    }
    uint32_t complete = __ballot_sync(kAllLanes, is_complete);
    for (; complete != 0; complete &= complete - 1) {
      const int source = __ffs(static_cast<int>(complete)) - 1;
      const auto of_source = [&](int32_t value) { return __shfl_sync(kAllLanes, value, source); };
      const int32_t expert = of_source(mine.expert);
      quantize_block(problem, context.plan, of_source(mine.row_begin), of_source(mine.num_rows), of_source(mine.column),
                     C::kWeightRowsScaled ? problem.given_scale(expert) : nullptr);
    }
  }
}

// acc += the products of the next block of K, scaled. is_copied: rows were copied by threads. Without scales of the
// weights' blocks those of rows alone count.
template <class C, int kColumns>
__device__ inline void multiply_next(const Ring& ring, RingPosition& at, bool is_copied, ptx::Fragment<kColumns>& acc) {
  static_assert(C::kStageBlocks == 1);
  constexpr int kFloat = sizeof(float);
  constexpr int kGroups = ptx::Fragment<kColumns>::kColumnGroups;
  const uint32_t data = cta::smem_address(ring.data);
  const uint32_t scales = data + ring.scales_offset(at.stage);
  ptx::Fragment<kColumns> products;
  cta::wait_phase(&ring.barriers->full[at.stage], at.phase);
  if (is_copied) ptx::fence_proxy_async();
  multiply_block(data + ring.weights_offset(at.stage), data + ring.rows_offset(at.stage), products);
  float2 weights = make_float2(1.0f, 1.0f);
  if constexpr (C::kBlocksScaled) weights = ptx::load_shared_f32x2(scales + threadIdx.x / 32 * 2 * kFloat);
  const auto scaled = [](float row, float weight) { return C::kBlocksScaled ? __fmul_rn(row, weight) : row; };
  float2 rows[kGroups];
#pragma unroll
  for (int j = 0; j < kGroups; ++j)
    rows[j] = ptx::load_shared_f32x2(scales + (kWeightScales + threadIdx.x % 4 * 2 + j * 8) * kFloat);
  ptx::wgmma_wait<0>();
  __syncwarp();  // every lane has read the scales
  if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&ring.barriers->empty[at.stage]);
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    acc[4 * j + 0] = __fmaf_rn(products[4 * j + 0], scaled(rows[j].x, weights.x), acc[4 * j + 0]);
    acc[4 * j + 1] = __fmaf_rn(products[4 * j + 1], scaled(rows[j].y, weights.x), acc[4 * j + 1]);
    acc[4 * j + 2] = __fmaf_rn(products[4 * j + 2], scaled(rows[j].x, weights.y), acc[4 * j + 2]);
    acc[4 * j + 3] = __fmaf_rn(products[4 * j + 3], scaled(rows[j].y, weights.y), acc[4 * j + 3]);
  }
  at.advance(ring);
}

// acc = the products over all of K, scaled. A warp without a slab multiplies what lies behind the others'.
template <class C, int kColumns>
__device__ inline void multiply_blocks(const Context<C>& context, const Unit& unit, RingPosition& at,
                                       ptx::Fragment<kColumns>& acc) {
  const int num_blocks = context.num_k_steps();
  const bool is_copied = !C::kQuantizedWhenRead && unit.num_rows > kBoxRows;
#pragma unroll
  for (int i = 0; i < ptx::Fragment<kColumns>::kRegisters; ++i) acc[i] = 0.0f;
#pragma unroll 1
  for (int block = 0; block < num_blocks; ++block) multiply_next<C>(context.ring, at, is_copied, acc);
}

// Writes the slab's columns of h in fp32.
template <class C, int kColumns>
__device__ inline void write_columns(const Context<C>& context, const Unit& unit, const SlabRows<C>& slab,
                                     const ptx::Fragment<kColumns>& acc) {
  const Problem& problem = context.problem;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int32_t width = problem.intermediate_size;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t row = 8 * j + lane % 4 * 2 + i;
      if (row >= unit.num_rows) continue;
      float* const out = problem.activations + int64_t{context.plan.row_pair[unit.row_begin + row]} * width +
                         slab.column_begin + lane / 4;
#pragma unroll
      for (int half = 0; half < SlabRows<C>::kHalves; ++half)
        if (slab.exists[half]) out[8 * half] = acc[4 * j + 2 * half + i];
    }
  }
}

// Writes the slab's columns of h, and hands them over to be quantised, unless GEMM 2 does so.
template <class C, int kColumns>
__device__ inline void store_quantized(const Context<C>& context, const Unit& unit, const SlabRows<C>& slab,
                                       const ptx::Fragment<kColumns>& acc, Handover& at) {
  if constexpr (C::kQuantizedWhenRead) {
    if (slab.exists[0]) write_columns(context, unit, slab, acc);
  } else {
    Barriers& barriers = *context.ring.barriers;
    cta::wait_phase(&barriers.counted[at.stage], at.phase ^ 1);
    if (slab.exists[0]) write_columns(context, unit, slab, acc);
    __syncwarp();  // all columns are written
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&barriers.written[at.stage]);
    at.advance();
  }
}

}  // namespace tessera::kernels::expert_gemm_rows
