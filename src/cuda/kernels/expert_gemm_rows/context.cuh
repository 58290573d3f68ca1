// What the warps of a CTA share: the launch's parameters, the plan, and the ring between those that load and those that
// multiply.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/cta/pipeline.cuh"
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
  CUtensorMap rows;                            // that the role reads, a row a box
  uint32_t units_of_pass[kPolicy.unit_slabs];  // of an expert's weights, by slabs of a unit
  Problem problem;
  LaunchOptions options;
};

// Of e4m3 operands: one a block of weights, or one a weight row. when_read: rows come as they are, and each CTA that
// reads them makes their scales and codes, see read_e4m3.cuh.
enum class Scales : uint8_t { none, blocks, blocks_when_read, weight_rows };

// What a role's kernel is compiled for. Tuning: see launch.cu.
template <Role kRole_, class Tuning>
struct Config {
  using Element = typename Tuning::Element;  // of biases and of GEMM 2's rows
  using Operand = typename Tuning::Operand;  // of weights and of the rows that they are multiplied with
  static constexpr Role kRole = kRole_;
  static constexpr bool kMarked = Tuning::kMarked;
  static constexpr bool kGated = kRole == Role::gate_up;
  static constexpr bool kQuantized = sizeof(Operand) == 1;  // e4m3 with scales
  static constexpr bool kWeightRowsScaled = Tuning::kScales == Scales::weight_rows;
  static constexpr bool kBlocksScaled = kQuantized && !kWeightRowsScaled;
  static constexpr bool kQuantizedWhenRead = Tuning::kScales == Scales::blocks_when_read;
  static_assert(kQuantized == (Tuning::kScales != Scales::none));
  // What a kernel before this one writes is read after it has ended; else ids alone, which are there.
  static constexpr bool kReadsLate = kRole == Role::down || (kQuantized && !kQuantizedWhenRead);
  static constexpr int kSlabOutColumns = kGated ? kSlabRows / 2 : kSlabRows;
  static constexpr int kTileK = cta::kSwizzleRowBytes / sizeof(Operand);  // elements of K in a block of a stage
  // Blocks of K that a stage has: two share their barriers, where that gains.
  static constexpr int kStageBlocks = kQuantized ? 1 : 2;
  static_assert(kStageRowBytes == cta::kSwizzleRowBytes);
  static_assert(!kQuantized || kTileK == kScaleGroup);
};

inline constexpr int kSlabBytes = kSlabRows * cta::kSwizzleRowBytes;  // of a stage
inline constexpr int kConsumerWarps = kPolicy.unit_slabs;
inline constexpr int kRowWarps = 2;
inline constexpr int kWarps = kConsumerWarps + 1 + kRowWarps + 1;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kMaxStages = 24;
inline constexpr int kHandovers = 4;  // units whose columns of h wait to be counted
// Rows of a unit that TMA copies, a row a box; more are copied faster by the threads of the row warps.
inline constexpr int kBoxRows = 2;

// Scales of a stage's slabs: two each, of its first 8 weight rows and of its last.
inline constexpr int kWeightScales = 2 * kPolicy.unit_slabs;

struct Barriers {
  uint64_t full[kMaxStages];     // bytes of TMA + arrivals of the row threads, and of the lanes that copy scales
  uint64_t empty[kMaxStages];    // every consumer warp
  uint64_t written[kHandovers];  // e4m3: every consumer warp, its columns of a unit's h
  uint64_t counted[kHandovers];  // by the warp that quantises
};

inline constexpr int kArrayBytes = kPolicy.shared_bytes - static_cast<int>(sizeof(Barriers));  // of ring and plan
inline constexpr int kRingAlignment = cta::kSwizzleAtomBytes;

// Stages as large as this run's units need, as many as fit. A stage has some blocks of K, each a box of weights, then
// the rows. Behind all of them each block's scales, where there are any: kWeightScales, then the rows'.
struct Ring {
  uint8_t* data;
  Barriers* barriers;
  int32_t unit_slabs;
  uint32_t units_of_pass;
  int32_t block_bytes;
  int32_t scale_bytes;  // of a block
  int32_t num_stages;
  int32_t all_block_bytes;  // of all stages

  // block: of the ring.
  __device__ int32_t weights_offset(int block) const { return block * block_bytes; }
  __device__ int32_t rows_offset(int block) const { return block * block_bytes + unit_slabs * kSlabBytes; }
  __device__ int32_t scales_offset(int block) const { return all_block_bytes + block * scale_bytes; }
};

// By all threads: a stage each.
template <class C>
__device__ inline void init_barriers(Barriers& barriers) {
  constexpr int kRowArrivals = C::kQuantizedWhenRead ? 1 : kRowWarps * (1 + 32);
  const int stage = static_cast<int>(threadIdx.x);
  if (stage < kMaxStages) {
    // For the boxes of weights, for those of rows of each row warp, and for every cp.async's thread. Rows that are
    // quantised here are one thread's word.
    ptx::mbarrier_init(&barriers.full[stage], 1 + kRowArrivals + (C::kBlocksScaled ? kWeightScales : 0));
    ptx::mbarrier_init(&barriers.empty[stage], kConsumerWarps);
    if (stage < kHandovers) {
      ptx::mbarrier_init(&barriers.written[stage], kConsumerWarps);
      ptx::mbarrier_init(&barriers.counted[stage], 1);
    }
    ptx::fence_mbarrier_init();
  }
}

// Where a warp is in the ring.
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

// Which of the hand-overs comes next.
using Handover = cta::RingPosition<kHandovers>;

// What the CTA's threads know of the launch.
template <class C>
struct Context {
  const Params& params;
  const Problem& problem;
  Plan plan;
  Ring ring;

  __device__ UnitWalk<kPolicy.max_columns> walk() const { return {plan, ring.units_of_pass, ring.unit_slabs}; }
  // From a step on, in one stage.
  __device__ int stage_blocks(int step) const {
    return C::kStageBlocks == 1 ? 1 : min(C::kStageBlocks, num_k_steps() - step);
  }
  // Of the rows that the role reads: which is row `row` of a unit.
  __device__ int64_t source_row(const Unit& unit, int row) const {
    const int32_t pair = plan.row_pair[unit.row_begin + row];
    return C::kRole == Role::down ? pair : pair / problem.routing.num_slots;
  }
  __device__ int num_k_steps() const { return (problem.sum_length(C::kRole) + C::kTileK - 1) / C::kTileK; }
};

}  // namespace tessera::kernels::expert_gemm_rows
