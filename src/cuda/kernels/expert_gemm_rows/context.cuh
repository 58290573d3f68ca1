// What the warps of a CTA share: the launch's parameters, the plan, and the ring between those that load and those that
// multiply.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/scales.cuh"
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
  using Element = typename Tuning::Element;  // of biases and of GEMM 2's rows
  using Operand = typename Tuning::Operand;  // of weights and of the rows that they are multiplied with
  static constexpr Role kRole = kRole_;
  static constexpr bool kMarked = Tuning::kMarked;
  static constexpr bool kGated = kRole == Role::gate_up;
  static constexpr bool kQuantized = sizeof(Operand) == 1;  // e4m3 with scales
  // What a kernel before this one writes is read after it has ended; else ids alone, which are there.
  static constexpr bool kReadsLate = kRole == Role::down || kQuantized;
  static constexpr int kSlabOutColumns = kGated ? kSlabRows / 2 : kSlabRows;
  static constexpr int kTileK = cta::kSwizzleRowBytes / sizeof(Operand);  // elements of K that a stage holds
  static_assert(kStageRowBytes == cta::kSwizzleRowBytes);
  static_assert(!kQuantized || kTileK == kScaleGroup);
};

inline constexpr int kSlabBytes = kSlabRows * cta::kSwizzleRowBytes;  // of a stage
inline constexpr int kConsumerWarps = kPolicy.unit_slabs;
inline constexpr int kRowWarps = 3;
inline constexpr int kWarps = kConsumerWarps + 1 + kRowWarps;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kMaxStages = 24;

// Scales of a stage's slabs: two each, of its first 8 weight rows and of its last.
inline constexpr int kWeightScales = 2 * kPolicy.unit_slabs;

struct Barriers {
  uint64_t full[kMaxStages];   // bytes of TMA + arrivals of the row threads, and of the lanes that copy scales
  uint64_t empty[kMaxStages];  // every consumer warp
};

inline constexpr int kArrayBytes = kPolicy.shared_bytes - static_cast<int>(sizeof(Barriers));  // of ring and plan
inline constexpr int kRingAlignment = cta::kSwizzleAtomBytes;

// Stages as large as this run's units need, as many as fit: a box of weights, then the rows. Behind all of them each
// stage's scales, where there are any: kWeightScales, then the rows'.
struct Ring {
  uint8_t* data;
  Barriers* barriers;
  int32_t unit_slabs;
  uint32_t units_of_pass;
  int32_t stage_bytes;
  int32_t scale_bytes;
  int32_t num_stages;

  __device__ uint8_t* weights(int stage) const { return data + stage * stage_bytes; }
  __device__ int32_t rows_offset(int stage) const { return stage * stage_bytes + unit_slabs * kSlabBytes; }
  __device__ int32_t scales_offset(int stage) const { return num_stages * stage_bytes + stage * scale_bytes; }
};

// By all threads: a stage each.
template <class C>
__device__ inline void init_barriers(Barriers& barriers) {
  const int stage = static_cast<int>(threadIdx.x);
  if (stage < kMaxStages) {
    ptx::mbarrier_init(&barriers.full[stage], 1 + kRowWarps * 32 + (C::kQuantized ? kWeightScales : 0));
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

// What the CTA's threads know of the launch.
template <class C>
struct Context {
  const Params& params;
  const Problem& problem;
  Plan plan;
  Ring ring;

  __device__ UnitWalk<kPolicy.max_columns> walk() const { return {plan, ring.units_of_pass, ring.unit_slabs}; }
  __device__ int num_k_steps() const { return (problem.sum_length(C::kRole) + C::kTileK - 1) / C::kTileK; }
};

}  // namespace tessera::kernels::expert_gemm_rows
