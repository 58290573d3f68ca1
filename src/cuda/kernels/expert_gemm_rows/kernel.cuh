// Expert GEMM for few rows an expert: the weights are what costs, so they are the operand with many rows, read once.
//
//   gate_up, up_only   h[pair, :] = act(W[e] * tokens[pair / num_slots] + bias[e])   W [E, 2I, H] or [E, I, H]
//   down               y[pair, :] = W[e] * h[pair] + bias[e]                         W [E, H, I]
//
// Each CTA makes the plan for itself and takes an even share of the units: up to 4 slabs of 16 weight rows, times up to
// 64 rows of an expert. K is never cut. Per unit, per K step of 64:
//
//   weight warp    waits empty[s], one thread, TMA: a box of the unit's slabs  --full[s]--+
//   3 row warps    wait empty[s], cp.async: the rows, by index                 --full[s]--+--> consumers
//   4 consumers    a slab each: wait full[s], ldmatrix, arrive empty[s], mma.sync; at the end bias, activation, 16-bit
//                  pairs transposed in registers, 4-byte stores
//
// GEMM 2 fills its ring with weights before GEMM 1 has ended: weights and ids depend on nothing that GEMM 1 writes.
// A slab of a gated weight is 8 gate and 8 up rows, so that gate and up of an output meet in one thread.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/cta/element.cuh"
#include "cuda/cta/mark.cuh"
#include "cuda/cta/pipeline.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/activation.cuh"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/row_gather.cuh"
#include "cuda/grouped/tensor_maps.h"
#include "cuda/kernels/expert_gemm_rows/launch.h"
#include "cuda/kernels/expert_gemm_rows/plan.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/warp.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace tessera::kernels::expert_gemm_rows {

using grouped::kSlabRows;
using grouped::Problem;
using grouped::Role;

inline constexpr Policy kPolicy = default_policy();

struct Params {
  CUtensorMap weights[kPolicy.unit_slabs];  // in boxes of 1, 2, ... slabs
  CUtensorMap shared_weights[kPolicy.unit_slabs];
  uint32_t units_of_pass[kPolicy.unit_slabs];  // of an expert's weights, by slabs of a unit
  Problem problem;
  LaunchOptions options;
};

// What a role's kernel is compiled for. Tuning: see launch.cu.
template <Role kRole_, class Tuning>
struct Config {
  using Element = typename Tuning::Element;
  static constexpr Role kRole = kRole_;
  static constexpr bool kMarked = Tuning::kMarked;
  static constexpr bool kGated = kRole == Role::gate_up;
  static constexpr int kSlabOutColumns = kGated ? kSlabRows / 2 : kSlabRows;
  static_assert(kTileK * sizeof(Element) == cta::kSwizzleRowBytes);
};

inline constexpr int kSlabBytes = kSlabRows * cta::kSwizzleRowBytes;  // of a stage
inline constexpr int kConsumerWarps = kPolicy.unit_slabs;
inline constexpr int kRowWarps = 3;
inline constexpr int kWarps = kConsumerWarps + 1 + kRowWarps;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kMaxStages = 24;

struct Barriers {
  uint64_t full[kMaxStages];   // bytes of TMA + arrivals of the row threads
  uint64_t empty[kMaxStages];  // every consumer warp
};

inline constexpr int kArrayBytes = kPolicy.shared_bytes - static_cast<int>(sizeof(Barriers));  // of ring and plan
inline constexpr int kRingAlignment = cta::kSwizzleAtomBytes;

// Stages as large as this run's units need, as many as fit: a box of weights, then the rows.
struct Ring {
  uint8_t* data;
  Barriers* barriers;
  int32_t unit_slabs;
  uint32_t units_of_pass;
  int32_t stage_bytes;
  int32_t num_stages;

  __device__ uint8_t* weights(int stage) const { return data + stage * stage_bytes; }
  __device__ int32_t rows_offset(int stage) const { return stage * stage_bytes + unit_slabs * kSlabBytes; }
};

// By all threads: a stage each.
__device__ inline void init_barriers(Barriers& barriers) {
  const int stage = static_cast<int>(threadIdx.x);
  if (stage < kMaxStages) {
    ptx::mbarrier_init(&barriers.full[stage], 1 + kRowWarps * 32);
    ptx::mbarrier_init(&barriers.empty[stage], kConsumerWarps);
    ptx::fence_mbarrier_init();
  }
}

struct RingPosition {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void advance(const Ring& ring) {
    if (++stage == ring.num_stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

__device__ inline int num_k_steps(int32_t k) { return (k + kTileK - 1) / kTileK; }

// What the CTA's threads know of the launch.
template <class C>
struct Context {
  const Params& params;
  const Problem& problem;
  Plan plan;
  Ring ring;

  __device__ UnitWalk<kPolicy.max_columns> walk() const { return {plan, ring.units_of_pass, ring.unit_slabs}; }
  __device__ int num_k_steps() const { return expert_gemm_rows::num_k_steps(problem.sum_length(C::kRole)); }
};

// By one thread. Until the ring is full it reads what no earlier kernel writes.
template <class C>
__device__ inline void load_weights(const Context<C>& context) {
  const Ring& ring = context.ring;
  const Problem& problem = context.problem;
  constexpr int kSlabBlocks = C::kGated ? 1 : 2;  // of 8 rows, of each half
  const int num_steps = context.num_k_steps();
  const bool is_loader = threadIdx.x % 32 == 0;
  RingPosition at;
  bool has_waited = C::kRole != Role::down;
  auto walk = context.walk();
  for (Unit unit; walk.next(unit);) {
    const bool is_routed = unit.expert < problem.num_experts;
    const CUtensorMap* const map =
        (is_routed ? context.params.weights : context.params.shared_weights) + ring.unit_slabs - 1;
    const int32_t expert = is_routed ? unit.expert : unit.expert - problem.num_experts;
    for (int step = 0; step < num_steps; ++step) {
      uint64_t* const full = &ring.barriers->full[at.stage];
      cta::wait_phase(&ring.barriers->empty[at.stage], at.phase ^ 1);
      if (is_loader) {
        const int32_t coordinates[5] = {step * kTileK, 0, 0, unit.slab_begin * kSlabBlocks, expert};
        ptx::mbarrier_arrive_expect_tx(full, static_cast<uint32_t>(ring.unit_slabs * kSlabBytes));
        ptx::tma_load_5d(ring.weights(at.stage), map, coordinates, full);
      }
      at.advance(ring);
      if (!has_waited && at.stage == 0) {
        ptx::wait_for_prerequisites();  // else it would poll for as long as the kernel before runs
        has_waited = true;
      }
      __syncwarp();
    }
  }
}

template <class C>
__device__ inline void load_rows(const Context<C>& context, int warp) {
  const Ring& ring = context.ring;
  const Problem& problem = context.problem;
  const int32_t row_bytes = problem.sum_length(C::kRole) * static_cast<int>(sizeof(typename C::Element));
  const auto* const source = static_cast<const char*>(C::kRole == Role::down ? problem.intermediate : problem.tokens);
  grouped::RowGather<kPolicy.max_columns, kRowWarps> gather(ring.data, {source, nullptr, row_bytes}, warp);
  RingPosition at;
  auto walk = context.walk();
  for (Unit unit; walk.next(unit);) {
    gather.select(unit.num_rows, [&](int row) {
      const int32_t pair = context.plan.row_pair[unit.row_begin + row];
      return source + (C::kRole == Role::down ? pair : pair / problem.routing.num_slots) * int64_t{row_bytes};
    });
    for (int32_t begin = 0; begin < row_bytes; begin += cta::kSwizzleRowBytes) {
      cta::wait_phase(&ring.barriers->empty[at.stage], at.phase ^ 1);
      gather.load_at(ring.rows_offset(at.stage), row_bytes - begin);
      ptx::cp_async_arrive_noinc(&ring.barriers->full[at.stage]);
      at.advance(ring);
    }
  }
}

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
  constexpr int kSteps = kTileK / 16;
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
  for (int step = 0; step < num_steps; ++step) {
    cta::wait_phase(&ring.barriers->full[at.stage], at.phase);
    if (has_slab) multiply_stage<C>(data + at.stage * ring.stage_bytes + slab, data + ring.rows_offset(at.stage), acc);
    __syncwarp();  // every lane has read the stage
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&ring.barriers->empty[at.stage]);
    at.advance(ring);
  }
}

template <class C, int kColumns>
__device__ inline void compute_unit(const Context<C>& context, const Unit& unit, RingPosition& at) {
  ptx::Fragment<kColumns> acc;
  const SlabRows<C> slab(context, unit);  // asks for the bias before the products
  multiply<C>(context, at, slab.exists[0], acc);
  finish<C>(context.problem, slab, acc);
  store<C>(context, unit, slab, acc);
}

template <class C>
__device__ inline void compute(const Context<C>& context) {
  RingPosition at;
  auto walk = context.walk();
  for (Unit unit; walk.next(unit);) {
    if (unit.num_rows <= 8) {
      compute_unit<C, 8>(context, unit, at);
    } else if (unit.num_rows <= 16) {
      compute_unit<C, 16>(context, unit, at);
    } else if (unit.num_rows <= 32) {
      compute_unit<C, 32>(context, unit, at);
    } else {
      compute_unit<C, 64>(context, unit, at);
    }
  }
}

// Slabs in a unit, such that the CTA with most units has least to do. A unit costs about a third of a slab beside its
// slabs: its first bytes are waited for, its results are written.
__device__ inline int32_t select_unit_slabs(const Params& params, int32_t num_passes) {
  int32_t best = 0;
  uint32_t best_cost = 0xFFFFFFFFu;
#pragma unroll
  for (int slabs = kPolicy.unit_slabs; slabs >= 1; --slabs) {
    const uint32_t units = static_cast<uint32_t>(num_passes) * params.units_of_pass[slabs - 1];
    const uint32_t cost = (units + gridDim.x - 1) / gridDim.x * (3 * slabs + 1);
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
  ring.unit_slabs = select_unit_slabs(params, plan.num_passes);
  ring.units_of_pass = params.units_of_pass[ring.unit_slabs - 1];
  const int32_t columns = plan.most_rows <= 8 ? 8 : plan.most_rows <= 16 ? 16 : plan.most_rows <= 32 ? 32 : 64;
  ring.stage_bytes = ring.unit_slabs * kSlabBytes + columns * cta::kSwizzleRowBytes;
  ring.num_stages = min(kMaxStages, static_cast<int32_t>(ring_end - shared) / ring.stage_bytes);
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
  init_barriers(*reinterpret_cast<Barriers*>(shared_bytes + kArrayBytes));
  // GEMM 1 reads nothing, and lets nobody else begin, before the ids are there: so GEMM 2 may read them at once.
  if constexpr (kRole != Role::down) ptx::wait_for_prerequisites();
  ptx::launch_dependents();
  const Context<C> context = prepare<C>(params, shared_bytes);
  ptx::fence_proxy_async();  // the scratch of the plan lies where TMA writes next
  __syncthreads();           // the plan and the barriers are ready, the scratch is not needed any more
  if (warp == kConsumerWarps) {
    load_weights(context);
  } else {
    if constexpr (kRole == Role::down) ptx::wait_for_prerequisites();
    cta::mark<C::kMarked>(params.options.marks, &cuda::KernelMarks::work);
    if (warp > kConsumerWarps) {
      load_rows(context, warp - kConsumerWarps - 1);
    } else {
      compute(context);
    }
  }
  cta::mark_end<C::kMarked>(params.options.marks);
}

}  // namespace tessera::kernels::expert_gemm_rows
