// The multiplying warps: a slab of 16 weight rows each, from the ring through mma.sync to global memory. Of operands of
// 16 bits; what is the same for e4m3, too.
#pragma once

#include <cstdint>

#include "cuda/cta/element.cuh"
#include "cuda/cta/pipeline.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/activation.cuh"
#include "cuda/kernels/expert_gemm_rows/context.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/warp.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace tessera::kernels::expert_gemm_rows {

// What a warp holds of a unit: one slab, of which each thread has two rows. A gated slab's are gate and up of one
// output column, else two output columns, 8 apart.
template <class C>
struct SlabRows {
  __device__ SlabRows(const Context<C>& context, const Unit& unit) {
    const Problem& problem = context.problem;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    column_begin = (unit.slab_begin + warp) * C::kSlabOutColumns;
    const int32_t n = problem.out_columns(C::kRole);
    for (int half = 0; half < kHalves; ++half)
      exists[half] = warp < context.ring.unit_slabs && column_begin + 8 * half < n;
    if constexpr (C::kWeightRowsScaled) load_scales(problem, unit.expert);
    if (problem.bias(C::kRole) == nullptr || unit.expert >= problem.num_experts) return;
    has_bias = true;
    const int32_t column = column_begin + static_cast<int>(threadIdx.x) % 32 / 4;
    const int64_t width = C::kGated ? 2 * int64_t{n} : n;
    const auto* const expert_bias =
        static_cast<const typename C::Element*>(problem.bias(C::kRole)) + unit.expert * width;
    if constexpr (C::kGated) {
      if (!exists[0]) return;
      bias[0] = cta::to_float(expert_bias[gate_row(problem.gate_up_order, column, n)]);
      bias[1] = cta::to_float(expert_bias[up_row(problem.gate_up_order, column, n)]);
    } else {
      for (int half = 0; half < 2; ++half)
        if (exists[half]) bias[half] = cta::to_float(expert_bias[column + 8 * half]);
    }
  }

  static constexpr int kHalves = C::kGated ? 1 : 2;  // blocks of 8 output columns

  int32_t column_begin;
  bool exists[kHalves];
  bool has_bias = false;
  float bias[2] = {};  // gate and up, or of each half
  float scale[2] = {1.0f, 1.0f};

 private:
  // Of the weight rows. A slice of the shared experts' first weight has its part of theirs.
  __device__ void load_scales(const Problem& problem, int32_t expert) {
    const int32_t n = problem.out_columns(C::kRole);
    const bool is_routed = expert < problem.num_experts;
    const bool is_slice = C::kRole != Role::down && !is_routed;
    const int32_t all = is_slice ? n * problem.num_shared_experts : n;
    const int32_t column =
        column_begin + static_cast<int>(threadIdx.x) % 32 / 4 + (is_slice ? (expert - problem.num_experts) * n : 0);
    const float* scales = C::kRole == Role::down ? problem.shared_down_scale : problem.shared_gate_up_scale;
    if (is_routed)
      scales = (C::kRole == Role::down ? problem.down_scale : problem.gate_up_scale) +
               static_cast<int64_t>(expert) * (C::kGated ? 2 * n : n);
    if constexpr (C::kGated) {
      if (!exists[0]) return;
      scale[0] = scales[gate_row(problem.gate_up_order, column, all)];
      scale[1] = scales[up_row(problem.gate_up_order, column, all)];
    } else {
      for (int half = 0; half < 2; ++half)
        if (exists[half]) scale[half] = scales[column + 8 * half];
    }
  }
};

// acc[4 j ..]: two rows (tokens) 8 j + 2 (lane % 4) + {0, 1} of the slab's first 8 weight rows, then of its last 8.
// Results take the place of the first two, of a gated slab, or of all four.
template <class C, int kColumns>
__device__ inline void finish(const Problem& problem, const SlabRows<C>& slab, ptx::Fragment<kColumns>& acc) {
  constexpr int kGroups = ptx::Fragment<kColumns>::kColumnGroups;
  if constexpr (C::kGated) {
    if (problem.gate_up_order == GateUpOrder::up_first) {
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        for (int i = 0; i < 2; ++i) {
          const float gate = acc[4 * j + 2 + i];
          acc[4 * j + 2 + i] = acc[4 * j + i];
          acc[4 * j + i] = gate;
        }
      }
    }
  }
  if constexpr (C::kWeightRowsScaled) {
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) acc[i] = __fmul_rn(acc[i], slab.scale[i / 2 % 2]);
  }
  if (slab.has_bias) {
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) acc[i] = __fadd_rn(acc[i], slab.bias[i / 2 % 2]);
  }
  if constexpr (C::kGated) {
    grouped::with_gated(problem.activation, [&](auto act) {
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        for (int i = 0; i < 2; ++i) acc[4 * j + i] = act(acc[4 * j + i], acc[4 * j + 2 + i]);
      }
    });
  } else if constexpr (C::kRole == Role::up_only) {
    grouped::with_plain(problem.activation, [&](auto act) {
#pragma unroll
      for (int i = 0; i < 4 * kGroups; ++i) acc[i] = act(acc[i]);
    });
  }
}

// Transposed, a lane holds two neighbouring columns of one token: four lanes write 16 bytes of it.
template <class C, int kColumns>
__device__ inline void store(const Context<C>& context, const Unit& unit, const SlabRows<C>& slab,
                             const ptx::Fragment<kColumns>& acc) {
  using Element = typename C::Element;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t n = context.problem.out_columns(C::kRole);
  auto* const out = static_cast<Element*>(context.problem.out(C::kRole));
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const int32_t row = 8 * j + lane / 4;
    const bool is_row = row < unit.num_rows;
    const int64_t pair = is_row ? context.plan.row_pair[unit.row_begin + row] : 0;
#pragma unroll
    for (int half = 0; half < SlabRows<C>::kHalves; ++half) {
      const int first = 4 * j + 2 * half;
      const uint32_t packed = ptx::transpose_8x8(cta::pack2(Element{}, acc[first], acc[first + 1]));
      if (is_row && slab.exists[half])
        *reinterpret_cast<uint32_t*>(out + pair * n + slab.column_begin + 8 * half + 2 * (lane % 4)) = packed;
    }
  }
}

// Adds the products of a stage: 16 weight rows of this warp at `a`, the rows at `b`, both in shared memory.
template <class C, int kColumns>
__device__ inline void multiply_stage(uint32_t a, uint32_t b, ptx::Fragment<kColumns>& acc) {
  using Element = typename C::Element;
  constexpr int kSteps = C::kTileK / 16;
  const uint32_t lane = threadIdx.x % 32;
  const auto chunk_of = [](uint32_t rows, uint32_t row, uint32_t chunk) {
    return rows + cta::swizzled_offset(row, chunk);
  };
  uint32_t weights[kSteps][4];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) ptx::ldmatrix_x4(weights[i], chunk_of(a, lane % 16, 2 * i + lane / 16));
  if constexpr (kColumns == 8) {  // four matrices are both halves of two steps
    uint32_t rows[kSteps / 2][4];
#pragma unroll
    for (int i = 0; i < kSteps / 2; ++i) ptx::ldmatrix_x4(rows[i], chunk_of(b, lane % 8, 4 * i + lane / 8));
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
      ptx::mma_m16n8k16(Element{}, acc.values, weights[i], rows[i / 2][i % 2 * 2], rows[i / 2][i % 2 * 2 + 1]);
  } else {  // both halves of a step for 16 columns
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j) {
        uint32_t rows[4];
        ptx::ldmatrix_x4(rows, chunk_of(b, 16 * j + lane / 16 * 8 + lane % 8, 2 * i + lane / 8 % 2));
        ptx::mma_m16n8k16(Element{}, &acc.values[8 * j], weights[i], rows[0], rows[1]);
        ptx::mma_m16n8k16(Element{}, &acc.values[8 * j + 4], weights[i], rows[2], rows[3]);
      }
    }
  }
}

// acc = the warp's slab of weights times the rows over all of K. A warp without a slab only gives the stages back.
template <class C, int kColumns>
__device__ inline void multiply(const Context<C>& context, RingPosition& at, bool has_slab,
                                ptx::Fragment<kColumns>& acc) {
  const Ring& ring = context.ring;
  const uint32_t slab = threadIdx.x / 32 * kSlabBytes;
  const uint32_t data = cta::smem_address(ring.data);
  const int num_steps = context.num_k_steps();
#pragma unroll
  for (int i = 0; i < ptx::Fragment<kColumns>::kRegisters; ++i) acc[i] = 0.0f;
  for (int step = 0; step < num_steps; step += C::kStageBlocks) {
    cta::wait_phase(&ring.barriers->full[at.stage], at.phase);
    if (has_slab) {
#pragma unroll
      for (int i = 0; i < C::kStageBlocks; ++i) {
        const int block = at.stage * C::kStageBlocks + i;
        if (step + i < num_steps)
          multiply_stage<C>(data + ring.weights_offset(block) + slab, data + ring.rows_offset(block), acc);
      }
    }
    __syncwarp();  // every lane has read the stage
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&ring.barriers->empty[at.stage]);
    at.advance(ring);
  }
}

}  // namespace tessera::kernels::expert_gemm_rows
