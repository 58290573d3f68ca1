// Expert GEMM for few rows an expert: the weights are what costs, so they are the operand with many rows, read once.
//
//   gate_up, up_only   h[pair, :] = act(W[e] * tokens[pair / num_slots] + bias[e])   W [E, 2I, H] or [E, I, H]
//   down               y[pair, :] = W[e] * h[pair] + bias[e]                         W [E, H, I]
//
// Operands have 16 bits, or are e4m3 with scales: then a stage's products are scaled before they are added, and h is
// quantised by whoever writes the last of a row's 128 columns, see consume_e4m3.cuh.
//
// Each CTA makes the plan for itself and takes an even share of the units: up to 4 slabs of 16 weight rows, times up to
// 64 rows of an expert. K is never cut. Per unit, per stage of one or two K steps of 128 bytes:
//
//   weight warp    waits empty[s], one thread, TMA: a box of the unit's slabs  --full[s]--+
//   2 row warps    wait empty[s], the rows, by index: two by TMA, more by cp.async --full[s]--+--> consumers
//   4 consumers    a slab each: wait full[s], ldmatrix, arrive empty[s], mma.sync; at the end bias, activation, 16-bit
//                  pairs transposed in registers, 4-byte stores
//   1 warp         e4m3: quantises h, where a block of its columns is complete
// One token's e4m3 rows are quantised by who reads them, by these three warps: see read_e4m3.cuh.
//
// GEMM 2 fills its ring with weights before GEMM 1 has ended: weights and ids depend on nothing that GEMM 1 writes.
// A slab of a gated weight is 8 gate and 8 up rows, so that gate and up of an output meet in one thread.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/cta/mark.cuh"
#include "cuda/cta/pipeline.cuh"
#include "cuda/grouped/row_gather.cuh"
#include "cuda/kernels/expert_gemm_rows/compute.cuh"
#include "cuda/kernels/expert_gemm_rows/context.cuh"
#include "cuda/kernels/expert_gemm_rows/load_scales.cuh"
#include "cuda/kernels/expert_gemm_rows/plan.cuh"
#include "cuda/kernels/expert_gemm_rows/read_e4m3.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/copy.cuh"

namespace tessera::kernels::expert_gemm_rows {

// By one thread, and some more for scales. Until the ring is full it reads what no earlier kernel writes.
template <class C>
__device__ inline void load_weights(const Context<C>& context) {
  const Ring& ring = context.ring;
  const Problem& problem = context.problem;
  constexpr int kSlabBlocks = C::kGated ? 1 : 2;  // of 8 rows, of each half
  const int num_steps = context.num_k_steps();
  const bool is_loader = threadIdx.x % 32 == 0;
  RingPosition at;
  bool has_waited = !C::kReadsLate;
  WeightScaleCopy<C> scales(context);
  auto walk = context.walk();
  for (Unit unit; walk.next(unit);) {
    if constexpr (C::kQuantized) scales.select(unit);
    const bool is_routed = unit.expert < problem.num_experts;
    const CUtensorMap* const map =
        (is_routed ? context.params.weights : context.params.shared_weights) + ring.unit_slabs - 1;
    const int32_t expert = is_routed ? unit.expert : unit.expert - problem.num_experts;
    for (int step = 0; step < num_steps; step += C::kStageBlocks) {
      uint64_t* const full = &ring.barriers->full[at.stage];
      const int num_blocks = context.stage_blocks(step);
      const int first_block = at.stage * C::kStageBlocks;
      cta::wait_phase(&ring.barriers->empty[at.stage], at.phase ^ 1);
      if (is_loader) {
        ptx::mbarrier_arrive_expect_tx(full, static_cast<uint32_t>(num_blocks * ring.unit_slabs * kSlabBytes));
#pragma unroll
        for (int i = 0; i < C::kStageBlocks; ++i) {
          if (i >= num_blocks) break;
          const int32_t coordinates[5] = {(step + i) * C::kTileK, 0, 0, unit.slab_begin * kSlabBlocks, expert};
          ptx::tma_load_5d(ring.data + ring.weights_offset(first_block + i), map, coordinates, full);
        }
      }
      if constexpr (C::kQuantized) scales.load(first_block, num_blocks, full);
      at.advance(ring);
      if (!has_waited && at.stage == 0) {
        ptx::wait_for_prerequisites();  // else it would poll for as long as the kernel before runs
        has_waited = true;
      }
      __syncwarp();
    }
  }
}

// One of kRowWarps warps: rows of each block of K, and their scales.
template <class C>
__device__ inline void load_rows(const Context<C>& context, int warp) {
  const Ring& ring = context.ring;
  const Problem& problem = context.problem;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int num_steps = context.num_k_steps();
  const int32_t row_bytes = problem.sum_length(C::kRole) * static_cast<int>(sizeof(typename C::Operand));
  const auto* const source = static_cast<const char*>(C::kRole == Role::down ? problem.intermediate : problem.tokens);
  RowScaleCopy<C> scales(context, warp * 32 + lane);
  RingPosition at;
  // box_bytes: of a block, that TMA brings for this warp. copy(block of the ring, step, barrier).
  const auto load_unit = [&](uint32_t box_bytes, auto&& copy) {
    for (int step = 0; step < num_steps; step += C::kStageBlocks) {
      uint64_t* const full = &ring.barriers->full[at.stage];
      const int num_blocks = context.stage_blocks(step);
      cta::wait_phase(&ring.barriers->empty[at.stage], at.phase ^ 1);
      if (lane == 0) ptx::mbarrier_arrive_expect_tx(full, box_bytes * static_cast<uint32_t>(num_blocks));
#pragma unroll
      for (int i = 0; i < C::kStageBlocks; ++i) {
        if (i >= num_blocks) break;
        const int block = at.stage * C::kStageBlocks + i;
        copy(block, step + i, full);
        if constexpr (C::kQuantized) scales.load(block);
      }
      ptx::cp_async_arrive_noinc(full);
      at.advance(ring);
    }
  };
  const auto gather_unit = [&](const Unit& unit, auto& gather) {
    gather.select(unit.num_rows, [&](int row) { return source + context.source_row(unit, row) * row_bytes; });
    load_unit(0, [&](int block, int step, uint64_t*) {
      gather.load_at(ring.rows_offset(block), row_bytes - step * cta::kSwizzleRowBytes);
    });
  };
  constexpr int kFewRows = 8;  // a chunk a thread
  grouped::RowGather<kFewRows, kRowWarps> gather_few(ring.data, {source, nullptr, row_bytes}, warp);
  grouped::RowGather<kPolicy.max_columns, kRowWarps> gather(ring.data, {source, nullptr, row_bytes}, warp);
  auto walk = context.walk();
  for (Unit unit; walk.next(unit);) {
    if constexpr (C::kQuantized) scales.select(unit);
    if (unit.num_rows <= kBoxRows) {
      const int num_boxes = warp == 0 ? unit.num_rows : 0;
      const auto row = static_cast<int32_t>(lane < num_boxes ? context.source_row(unit, lane) : 0);
      load_unit(static_cast<uint32_t>(num_boxes * cta::kSwizzleRowBytes), [&](int block, int step, uint64_t* full) {
        if (lane >= num_boxes) return;
        ptx::tma_load_2d(ring.data + ring.rows_offset(block) + lane * cta::kSwizzleRowBytes, &context.params.rows,
                         step * C::kTileK, row, full);
      });
    } else if (unit.num_rows <= kFewRows) {
      gather_unit(unit, gather_few);
    } else {
      gather_unit(unit, gather);
    }
  }
}

// Slabs in a unit, such that the CTA with most units has least to do. A unit costs about a third of a slab beside its
// slabs: its first bytes are waited for, its results are written. Of e4m3, it has at least the cost of two slabs and a
// half: WGMMA multiplies four, however many there are.
template <class C>
__device__ inline int32_t select_unit_slabs(const Params& params, int32_t num_passes) {
  int32_t best = 0;
  uint32_t best_cost = 0xFFFFFFFFu;
#pragma unroll
  for (int slabs = kPolicy.unit_slabs; slabs >= 1; --slabs) {
    const uint32_t units = static_cast<uint32_t>(num_passes) * params.units_of_pass[slabs - 1];
    const uint32_t sixths = max(6 * slabs, C::kQuantized ? 15 : 0) + 2;
    const uint32_t cost = (units + gridDim.x - 1) / gridDim.x * sixths;
    if (cost < best_cost) best = slabs, best_cost = cost;
  }
  return best;
}

// By all threads: the plan, and a ring for the units that follow from it. They must meet before they use either.
template <class C>
__device__ inline Context<C> prepare(const Params& params, uint8_t* shared) {
  const grouped::Routing& routing = params.problem.routing;
  Context<C> context{params, params.problem, {}, {}};
  Ring& ring = context.ring;
  Plan& plan = context.plan;
  ring.data = shared;
  ring.barriers = reinterpret_cast<Barriers*>(shared + kArrayBytes);
  const auto pairs = static_cast<int32_t>(routing.pairs());
  const uint8_t* const ring_end = plan.place_before(shared + kArrayBytes, pairs, routing.num_experts);
  // One CTA tells the combine which pairs have rows.
  const bool tells = C::kRole != Role::down && blockIdx.x == gridDim.x - 1;
  int32_t* const token_row = tells ? params.problem.plan.token_row : nullptr;
  if (pairs <= 32) {
    make_warp_plan(plan, routing, token_row);
  } else {
    using Scratch = PlanScratch<kWarps, kPolicy.max_pairs>;
    make_plan<kPolicy.max_columns>(plan, *reinterpret_cast<Scratch*>(shared), routing, token_row);
  }
  ring.unit_slabs = select_unit_slabs<C>(params, plan.num_passes);
  ring.units_of_pass = params.units_of_pass[ring.unit_slabs - 1];
  const int32_t columns = plan.most_rows <= 8 ? 8 : plan.most_rows <= 16 ? 16 : plan.most_rows <= 32 ? 32 : 64;
  ring.block_bytes = ring.unit_slabs * kSlabBytes + columns * cta::kSwizzleRowBytes;
  // WGMMA multiplies as many slabs as a unit may have: of the last stage it reads on behind the ring.
  const int32_t read_past = C::kQuantized ? (kPolicy.unit_slabs - ring.unit_slabs) * kSlabBytes : 0;
  ring.scale_bytes = C::kQuantized ? (kWeightScales + columns) * static_cast<int32_t>(sizeof(float)) : 0;
  ring.num_stages = min(kMaxStages, (static_cast<int32_t>(ring_end - shared) - read_past) /
                                        (C::kStageBlocks * (ring.block_bytes + ring.scale_bytes)));
  ring.all_block_bytes = ring.num_stages * C::kStageBlocks * ring.block_bytes;
  return context;
}

template <Role kRole, class Tuning>
__global__ void __launch_bounds__(kThreads, kPolicy.ctas_per_sm)
    expert_gemm_rows_kernel(const __grid_constant__ Params params) {
  using C = Config<kRole, Tuning>;
  extern __shared__ __align__(kRingAlignment) uint8_t shared_bytes[];
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);  // uniform for the compiler
  cta::mark<C::kMarked>(params.options.marks, &cuda::KernelMarks::begin);
  if (threadIdx.x == kThreads - 1) ptx::prefetch_tensor_map(&params.weights[kPolicy.unit_slabs - 1]);
  init_barriers<C>(*reinterpret_cast<Barriers*>(shared_bytes + kArrayBytes));
  // GEMM 1 reads nothing, and lets nobody else begin, before the ids are there: so GEMM 2 may read them at once. Where
  // tokens are quantised first, the kernel that does so waits for the ids.
  if constexpr (!C::kReadsLate) ptx::wait_for_prerequisites();
  ptx::launch_dependents();
  const Context<C> context = prepare<C>(params, shared_bytes);
  ptx::fence_proxy_async();  // the scratch of the plan lies where TMA writes next
  __syncthreads();           // the plan and the barriers are ready, the scratch is not needed any more
  if (warp == kConsumerWarps) {
    load_weights(context);
  } else {
    if constexpr (C::kReadsLate) ptx::wait_for_prerequisites();
    cta::mark<C::kMarked>(params.options.marks, &cuda::KernelMarks::work);
    const int row_warp = warp - kConsumerWarps - 1;
    if (warp > kConsumerWarps) {
      if constexpr (C::kQuantizedWhenRead) {
        RowQuantizer<C>(context, row_warp).run();
      } else if (row_warp < kRowWarps) {
        load_rows(context, row_warp);
      } else if constexpr (C::kQuantized && C::kRole != Role::down) {
        quantize_finished(context);
      }
    } else {
      compute(context);
    }
  }
  cta::mark_end<C::kMarked>(params.options.marks);
}

}  // namespace tessera::kernels::expert_gemm_rows
