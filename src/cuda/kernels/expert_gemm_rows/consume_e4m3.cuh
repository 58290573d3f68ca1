// The multiplying warps where operands are e4m3: a warpgroup multiplies all slabs of a unit by WGMMA, whose 13-bit sums
// never run through more than one block of scales, and h leaves quantised.
//
// h has one scale for each row and 128 columns, which are the work of many CTAs: each writes its columns in fp32 and
// counts its slabs, and who comes last quantises them all.
#pragma once

#include <cstdint>

#include "cuda/cta/pipeline.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/quantize_rows.cuh"
#include "cuda/kernels/expert_gemm_rows/consume.cuh"
#include "cuda/kernels/expert_gemm_rows/context.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace tessera::kernels::expert_gemm_rows {

inline constexpr int kCountAfter = 4;  // blocks of the next unit, in which what was written arrives

// Products of one block of K: the unit's weight rows at `a`, its rows at `b`, both in shared memory.
template <int kColumns>
__device__ inline void multiply_block(uint32_t a, uint32_t b, ptx::Fragment<kColumns>& products) {
  const uint64_t a_desc = cta::wgmma_descriptor(a);
  const uint64_t b_desc = cta::wgmma_descriptor(b);
  ptx::fence_proxy_async();  // rows were copied by threads
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < cta::kSwizzleRowBytes / 32; ++i) {
    ptx::wgmma<__nv_fp8_e4m3, kColumns>(products, a_desc + i * cta::kDescriptorKStep,
                                        b_desc + i * cta::kDescriptorKStep, i > 0);
  }
  ptx::wgmma_commit();
}

// One lane for four columns of a row: codes and scale of the block of 128 columns at `column` of `num_rows` rows of the
// plan.
__device__ inline void quantize_block(const Problem& problem, const Plan& plan, int32_t row_begin, int32_t num_rows,
                                      int32_t column) {
  constexpr int kRowsAtOnce = 4;  // reads in flight
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t width = problem.intermediate_size;
  const int32_t lane_column = column + 4 * lane;
  const bool exists = lane_column < problem.intermediate_size;
  float* const scales = problem.intermediate_scales + static_cast<int64_t>(column / kScaleGroup) * problem.scale_stride;
#pragma unroll 1
  for (int first = 0; first < num_rows; first += kRowsAtOnce) {
    float4 values[kRowsAtOnce];
    int64_t pairs[kRowsAtOnce];
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      pairs[i] = plan.row_pair[row_begin + min(first + i, num_rows - 1)];
      values[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (exists) {  // past L1: other multiprocessors wrote them
        values[i] = __ldcg(reinterpret_cast<const float4*>(problem.activations + pairs[i] * width + lane_column));
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (first + i >= num_rows) break;
      float amax = ptx::max_or_nan(ptx::max_or_nan(fabsf(values[i].x), fabsf(values[i].y)),
                                   ptx::max_or_nan(fabsf(values[i].z), fabsf(values[i].w)));
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2)
        amax = ptx::max_or_nan(amax, __shfl_xor_sync(kAllLanes, amax, distance));
      const float scale = grouped::group_scale(amax);
      const float inverse = __frcp_rn(scale);
      const uint32_t low = grouped::quantize_pair(values[i].x, values[i].y, inverse);
      const uint32_t high = grouped::quantize_pair(values[i].z, values[i].w, inverse);
      if (exists)
        *reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(problem.intermediate) + pairs[i] * width + lane_column) =
            low | high << 16;
      if (lane == 0) scales[pairs[i]] = scale;
    }
  }
}

// A slab whose columns of h are written and not yet counted. The count needs what was written to have arrived, and is
// answered late; meanwhile the warp multiplies its next slab, or memory would wait for it.
class PendingSlab {
 public:
  __device__ explicit PendingSlab(const Problem& problem) : problem_(problem) {}

  // After all lanes have written.
  template <class C>
  __device__ void set(const Unit& unit, int32_t column_begin) {
    const int32_t width = problem_.intermediate_size;
    const int32_t block = column_begin / kScaleGroup;
    row_begin_ = unit.row_begin;
    num_rows_ = unit.num_rows;
    column_ = block * kScaleGroup;
    last_ = (min(kScaleGroup, width - column_) + C::kSlabOutColumns - 1) / C::kSlabOutColumns - 1;
    counter_ = problem_.block_arrivals + unit.row_begin * scale_groups(width) + block;
    __syncwarp();  // all columns are written
  }

  // By all lanes, as finish.
  __device__ void count() {
    if (counter_ == nullptr || threadIdx.x % 32 != 0) return;
    __threadfence();  // whoever sees the count sees the columns
    before_ = atomicAdd(counter_, 1);
  }

  // The last slab of a block of 128 columns quantises them all.
  __device__ void finish(const Plan& plan) {
    if (counter_ == nullptr) return;
    counter_ = nullptr;
    if (__shfl_sync(kAllLanes, before_, 0) != last_) return;
    __threadfence();  // the others' columns are seen from here on
    quantize_block(problem_, plan, row_begin_, num_rows_, column_);
  }

 private:
  const Problem& problem_;
  int32_t* counter_ = nullptr;  // null: none
  int32_t before_ = 0;
  int32_t last_ = 0;
  int32_t row_begin_ = 0;
  int32_t num_rows_ = 0;
  int32_t column_ = 0;
};

// acc += the products of the next kBlocks blocks of K, scaled. All of them are asked for before the first is waited
// for.
template <int kBlocks, int kColumns>
__device__ inline void multiply_next(const Ring& ring, RingPosition& at, ptx::Fragment<kColumns>& acc) {
  constexpr int kFloat = sizeof(float);
  constexpr int kGroups = ptx::Fragment<kColumns>::kColumnGroups;
  const uint32_t data = cta::smem_address(ring.data);
  ptx::Fragment<kColumns> products[kBlocks];
  int stages[kBlocks];
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    stages[i] = at.stage;
    cta::wait_phase(&ring.barriers->full[at.stage], at.phase);
    multiply_block(data + at.stage * ring.stage_bytes, data + ring.rows_offset(at.stage), products[i]);
    at.advance(ring);
  }
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    const uint32_t scales = data + ring.scales_offset(stages[i]);
    const float2 weights = ptx::load_shared_f32x2(scales + threadIdx.x / 32 * 2 * kFloat);
    float2 rows[kGroups];
#pragma unroll
    for (int j = 0; j < kGroups; ++j)
      rows[j] = ptx::load_shared_f32x2(scales + (kWeightScales + threadIdx.x % 4 * 2 + j * 8) * kFloat);
    if (i < kBlocks - 1) {
      ptx::wgmma_wait<kBlocks - 1>();  // of two
    } else {
      ptx::wgmma_wait<0>();
    }
    __syncwarp();  // every lane has read the scales
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&ring.barriers->empty[stages[i]]);
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      acc[4 * j + 0] = __fmaf_rn(products[i][4 * j + 0], __fmul_rn(rows[j].x, weights.x), acc[4 * j + 0]);
      acc[4 * j + 1] = __fmaf_rn(products[i][4 * j + 1], __fmul_rn(rows[j].y, weights.x), acc[4 * j + 1]);
      acc[4 * j + 2] = __fmaf_rn(products[i][4 * j + 2], __fmul_rn(rows[j].x, weights.y), acc[4 * j + 2]);
      acc[4 * j + 3] = __fmaf_rn(products[i][4 * j + 3], __fmul_rn(rows[j].y, weights.y), acc[4 * j + 3]);
    }
  }
}

// acc = the products over all of K, scaled. A warp without a slab multiplies what lies behind the others'.
template <class C, int kColumns>
__device__ inline void multiply_blocks(const Context<C>& context, RingPosition& at, ptx::Fragment<kColumns>& acc,
                                       PendingSlab& pending) {
  constexpr int kBlocks = kColumns <= 32 ? 2 : 1;  // that registers have room for
  static_assert(kCountAfter % 2 == 0);
  const int num_blocks = context.num_k_steps();
#pragma unroll
  for (int i = 0; i < ptx::Fragment<kColumns>::kRegisters; ++i) acc[i] = 0.0f;
  int block = 0;
#pragma unroll 1
  for (; block + kBlocks <= num_blocks; block += kBlocks) {
    if (C::kRole != Role::down && block == kCountAfter) pending.count();
    multiply_next<kBlocks>(context.ring, at, acc);
  }
  if (block < num_blocks) multiply_next<1>(context.ring, at, acc);
  if constexpr (C::kRole != Role::down) {
    if (block <= kCountAfter) pending.count();
    pending.finish(context.plan);
  }
}

// Writes the slab's columns of h in fp32.
template <class C, int kColumns>
__device__ inline void store_quantized(const Context<C>& context, const Unit& unit, const SlabRows<C>& slab,
                                       const ptx::Fragment<kColumns>& acc, PendingSlab& pending) {
  if (!slab.exists[0]) return;
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
  pending.set<C>(unit, slab.column_begin);
}

}  // namespace tessera::kernels::expert_gemm_rows
