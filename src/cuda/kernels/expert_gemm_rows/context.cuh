// What the warps of a CTA share: the launch's parameters, the plan, and the ring between those that load and those that
// multiply.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/tensor_maps.h"
#include "cuda/kernels/expert_gemm_rows/launch.h"
#include "cuda/kernels/expert_gemm_rows/plan.cuh"
#include "cuda/ptx/mbarrier.cuh"

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

}  // namespace tessera::kernels::expert_gemm_rows
