// Rows that are quantised to e4m3 where they are read, by each CTA that multiplies them.
#pragma once

#include <cstdint>

#include "cuda/cta/pipeline.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/lane_elements.cuh"
#include "cuda/kernels/expert_gemm_rows/context.cuh"
#include "cuda/ptx/copy.cuh"

namespace tessera::kernels::expert_gemm_rows {

using grouped::kGroupLanes;
using grouped::kLaneElements;
using grouped::LaneElements;

// One of the warps that bring rows, in place of load_rows: quantises the rows of each stage into it. A group of lanes
// has every so many-th block of K, and all rows of the unit there.
template <class C>
class RowQuantizer {
 public:
  static constexpr int kQuantizingWarps = kWarps - kConsumerWarps - 1;

  __device__ RowQuantizer(const Context<C>& context, int warp)
      : context_(context),
        chunk_(static_cast<int>(threadIdx.x) % kGroupLanes),
        group_(warp * (32 / kGroupLanes) + static_cast<int>(threadIdx.x) % 32 / kGroupLanes),
        num_groups_(min(kGroups, context.ring.num_stages)),
        num_steps_(context.num_k_steps()),
        walk_(context.walk()) {}

  // The next part is asked for before one is quantised.
  __device__ void run() {
    Part part;
    begin_unit(part, 0);
    LaneElements elements;
    if (part.exists) load(part, elements);
    while (part.exists) {
      Part next = part;
      advance(next);
      LaneElements next_elements;
      if (next.exists) load(next, next_elements);
      store(part, elements);
      part = next;
      elements = next_elements;
    }
  }

 private:
  static constexpr int kGroups = kQuantizingWarps * 32 / kGroupLanes;

  // A row of some blocks of K, one a group. Uniform in a warp but for first_step.
  struct Part {
    Unit unit;
    bool exists;
    uint32_t unit_begin;  // steps of the units before
    int first_step;       // of this group, in the unit
    int round_begin;      // what it adds to that
    int row = 0;
  };

  __device__ void advance(Part& part) {
    if (++part.row < part.unit.num_rows) return;
    part.row = 0;
    part.round_begin += num_groups_;
    if (part.round_begin < num_steps_) return;
    begin_unit(part, part.unit_begin + static_cast<uint32_t>(num_steps_));
  }

  // A group has every num_groups_-th step of all units, and there are not more groups than stages: else one might come
  // to a stage before another group has filled it for the turn before, and take that turn's phase for its own.
  __device__ void begin_unit(Part& part, uint32_t steps_before) {
    const auto groups = static_cast<uint32_t>(num_groups_);
    part.unit_begin = steps_before;
    part.first_step = static_cast<int>((static_cast<uint32_t>(group_) + groups - steps_before % groups) % groups);
    part.round_begin = 0;
    part.exists = walk_.next(part.unit);
  }

  __device__ bool has_step(const Part& part) const { return group_ < num_groups_ && step_of(part) < num_steps_; }
  __device__ static int step_of(const Part& part) { return part.round_begin + part.first_step; }

  __device__ void load(const Part& part, LaneElements& elements) const {
    const Problem& problem = context_.problem;
    const int32_t columns = problem.sum_length(C::kRole);
    const int32_t column = step_of(part) * kScaleGroup + chunk_ * kLaneElements;
    const int64_t place = context_.source_row(part.unit, part.row) * columns + column;
    if constexpr (C::kRole == Role::down) {
      elements.load(problem.activations + place, has_step(part) && column < columns);
    } else {
      elements.load(static_cast<const typename C::Element*>(problem.tokens) + place,
                    has_step(part) && column < columns);
    }
  }

  __device__ void store(const Part& part, const LaneElements& elements) const {
    const Ring& ring = context_.ring;
    const int step = step_of(part);
    const bool exists = has_step(part);
    const uint32_t position = part.unit_begin + static_cast<uint32_t>(step);
    const auto stage = static_cast<int>(position % static_cast<uint32_t>(ring.num_stages));
    const float scale = grouped::group_scale(elements.group_largest());
    if (exists) {
      const uint32_t phase = position / static_cast<uint32_t>(ring.num_stages) % 2;
      if (part.row == 0) cta::wait_phase(&ring.barriers->empty[stage], phase ^ 1);
      *reinterpret_cast<uint4*>(ring.data + ring.rows_offset(stage) + cta::swizzled_offset(part.row, chunk_)) =
          elements.codes(scale);
      if (chunk_ == 0)
        reinterpret_cast<float*>(ring.data + ring.scales_offset(stage))[kWeightScales + part.row] = scale;
    }
    if (part.row < part.unit.num_rows - 1) return;
    ptx::fence_proxy_async();  // WGMMA reads what threads wrote
    __syncwarp();              // all chunks of all rows are written and fenced
    if (exists && chunk_ == 0) ptx::mbarrier_arrive(&ring.barriers->full[stage]);
  }

  const Context<C>& context_;
  const int chunk_;  // of 16 codes, in a row of the stage
  const int group_;
  const int num_groups_;
  const int num_steps_;
  UnitWalk<kPolicy.max_columns> walk_;
};

}  // namespace tessera::kernels::expert_gemm_rows
