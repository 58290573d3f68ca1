// The plan of a small batch, made by every CTA for itself: experts with rows, their rows, and a tile prefix over them.
//
// A launch that plans costs more than what it would save here: few ids are sorted faster than their plan is read.
// Rows keep their place as (token, slot) pairs; only which pairs an expert has must be found. They stand in the order
// of the pairs: every CTA must agree on which rows a pass takes. The sort is that of kernels/moe_plan: a warp walks its
// contiguous part 32 pairs at a time, and a pair's rank is what the warp has seen of its expert.
#pragma once

#include <cstdint>

#include "cuda/grouped/pair_expert.cuh"
#include "tessera/batching/decode_warp.cuh"

namespace tessera::kernels::expert_gemm_rows {

inline constexpr int kMaxExperts = 1024;
inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

// Arrays in shared memory. A task is an expert with rows; a pass multiplies at most kPassRows of them.
struct Plan {
  int32_t* task_end;  // prefix of the tasks' passes
  uint16_t* task_expert;
  uint16_t* task_row;  // first in row_pair; one past the last ends the last task's
  uint16_t* row_pair;
  int32_t num_tasks;
  int32_t num_passes;
  int32_t most_rows;  // of an expert in a pass

  // Lays the arrays out so that they end at `end`, a multiple of 4; returns where they begin.
  __device__ uint8_t* place_before(uint8_t* end, int32_t pairs, int32_t experts) {
    const int32_t most_tasks = min(pairs, experts);
    uint8_t* const begin = end - (most_tasks * 8 + 4 + pairs * 2 + 3) / 4 * 4;
    task_end = reinterpret_cast<int32_t*>(begin);
    task_expert = reinterpret_cast<uint16_t*>(task_end + most_tasks);
    task_row = task_expert + most_tasks;
    row_pair = task_row + most_tasks + 2;
    return begin;
  }

  __device__ batching::TilePrefix prefix() const { return {task_end, num_tasks}; }
};

// Needed until the plan is made: lies where the ring will.
template <int kWarps, int kMaxPairs>
struct PlanScratch {
  uint16_t warp_rows[kWarps][kMaxExperts];  // of each expert in each warp's part: their number, then the first's place
  uint16_t pair_expert[kMaxPairs];          // kNoExpert: none
  uint16_t pair_rank[kMaxPairs];            // in its warp's part
  uint64_t warp_sums[kWarps];
  int32_t warp_most[kWarps];
  uint64_t total;
};

inline constexpr uint16_t kNoExpert = 0xFFFF;

// Three sums at once: passes, rows, tasks.
template <int kPassRows>
__device__ inline uint64_t pack_sums(int32_t rows) {
  const auto count = static_cast<uint32_t>(rows);
  return (static_cast<uint64_t>((count + kPassRows - 1) / kPassRows) << 32) | (count << 16) | (count > 0 ? 1 : 0);
}

// Inclusive sum over the CTA's threads; all call it.
template <int kWarps>
__device__ inline uint64_t inclusive_sum(uint64_t value, uint64_t (&warp_sums)[kWarps]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint64_t other = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += other;
  }
  if (lane == 31) warp_sums[warp] = value;
  __syncthreads();  // every warp's total is written
#pragma unroll
  for (int w = 0; w < kWarps; ++w) value += w < warp ? warp_sums[w] : 0;
  return value;
}

// Ranks of the pairs of one warp's part, and how many of each expert it has.
template <int kWarps, int kMaxPairs>
__device__ inline void rank_part(PlanScratch<kWarps, kMaxPairs>& scratch, const grouped::Routing& routing,
                                 int32_t part_pairs) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int32_t begin = warp * part_pairs;
  const int32_t end = min(begin + part_pairs, static_cast<int32_t>(routing.pairs()));
  uint16_t* const rows = scratch.warp_rows[warp];
  for (int32_t first = begin; first < end; first += 32) {
    const int32_t pair = first + lane;
    const int32_t expert = pair < end ? grouped::expert_of(routing, pair) : -1;
    const uint32_t same = __match_any_sync(kAllLanes, expert);
    const uint32_t lower = same & ((1u << lane) - 1);
    const int rank = expert >= 0 ? rows[expert] + __popc(lower) : 0;
    __syncwarp();  // all lanes have read the counts
    if (expert >= 0 && lower == 0) rows[expert] = static_cast<uint16_t>(rank + __popc(same));
    if (pair < end) {
      scratch.pair_expert[pair] = expert < 0 ? kNoExpert : static_cast<uint16_t>(expert);
      scratch.pair_rank[pair] = static_cast<uint16_t>(rank);
    }
    __syncwarp();  // the next step reads these counts
  }
}

// The plan of at most 32 pairs: a pair a lane, no scratch and no barrier. Every warp finds the same, warp 0 writes it.
// Tasks stand in the order of their first pairs; each has one pass.
__device__ inline void make_warp_plan(Plan& plan, const grouped::Routing& routing, int32_t* token_row) {
  const int32_t pairs = static_cast<int32_t>(routing.pairs());
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const uint32_t lower_lanes = (1u << lane) - 1;
  const int32_t expert = lane < pairs ? grouped::expert_of(routing, lane) : -1;
  const uint32_t same = __match_any_sync(kAllLanes, expert);
  const int32_t rows = expert >= 0 ? __popc(same) : 0;
  const int first_lane = __ffs(static_cast<int>(same)) - 1;
  const bool is_first = expert >= 0 && lane == first_lane;
  int32_t end = is_first ? rows : 0;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, end, distance);
    if (lane >= distance) end += other;
  }
  const int32_t first_row = __shfl_sync(kAllLanes, end - rows, first_lane);
  const uint32_t tasks = __ballot_sync(kAllLanes, is_first);
  plan.num_tasks = plan.num_passes = __popc(tasks);
  plan.most_rows = __reduce_max_sync(kAllLanes, rows);
  if (threadIdx.x >= 32) return;
  if (is_first) {
    const int task = __popc(tasks & lower_lanes);
    plan.task_expert[task] = static_cast<uint16_t>(expert);
    plan.task_row[task] = static_cast<uint16_t>(first_row);
    plan.task_end[task] = task + 1;
  }
  if (lane == 31) plan.task_row[plan.num_tasks] = static_cast<uint16_t>(end);
  if (expert >= 0) plan.row_pair[first_row + __popc(same & lower_lanes)] = static_cast<uint16_t>(lane);
  if (token_row != nullptr && lane < pairs) token_row[lane] = expert >= 0 ? lane : -1;
}

// By all threads of the CTA, which must meet at a barrier before they read the plan. token_row: gets every pair, or -1
// where it has no expert here; null: none.
template <int kPassRows, int kWarps, int kMaxPairs>
__device__ inline void make_plan(Plan& plan, PlanScratch<kWarps, kMaxPairs>& scratch, const grouped::Routing& routing,
                                 int32_t* token_row) {
  constexpr int kThreads = kWarps * 32;
  const int thread = static_cast<int>(threadIdx.x);
  const int32_t pairs = static_cast<int32_t>(routing.pairs());
  const int32_t part_pairs = ((pairs + kWarps - 1) / kWarps + 31) / 32 * 32;
  for (int32_t e = thread % 32; e < routing.num_experts; e += 32) scratch.warp_rows[thread / 32][e] = 0;
  __syncwarp();  // this warp's counts are zero
  rank_part(scratch, routing, part_pairs);
  __syncthreads();  // counts and ranks are complete
  const auto rows_of = [&](int32_t expert) {
    int32_t rows = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) rows += scratch.warp_rows[w][expert];
    return rows;
  };
  const int32_t experts_per_thread = (routing.num_experts + kThreads - 1) / kThreads;
  const int32_t first_expert = min(thread * experts_per_thread, routing.num_experts);
  const int32_t end_expert = min(first_expert + experts_per_thread, routing.num_experts);
  uint64_t sum = 0;
  int32_t most_rows = 0;
#pragma unroll 1
  for (int32_t e = first_expert; e < end_expert; ++e) {
    const int32_t rows = rows_of(e);
    sum += pack_sums<kPassRows>(rows);
    most_rows = max(most_rows, rows);
  }
  most_rows = __reduce_max_sync(kAllLanes, min(most_rows, kPassRows));
  if (thread % 32 == 0) scratch.warp_most[thread / 32] = most_rows;
  const uint64_t end = inclusive_sum(sum, scratch.warp_sums);
  uint64_t before = end - sum;
#pragma unroll 1
  for (int32_t e = first_expert; e < end_expert; ++e) {
    const int32_t rows = rows_of(e);
    if (rows == 0) continue;
    const auto task = static_cast<uint32_t>(before & 0xFFFF);
    auto next_row = static_cast<uint16_t>(before >> 16);
    plan.task_expert[task] = static_cast<uint16_t>(e);
    plan.task_row[task] = next_row;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const uint16_t count = scratch.warp_rows[w][e];
      scratch.warp_rows[w][e] = next_row;
      next_row = static_cast<uint16_t>(next_row + count);
    }
    before += pack_sums<kPassRows>(rows);
    plan.task_end[task] = static_cast<int32_t>(before >> 32);
  }
  if (thread == kThreads - 1) {
    scratch.total = end;
    plan.task_row[end & 0xFFFF] = static_cast<uint16_t>(end >> 16);
  }
  __syncthreads();  // first rows and totals are written
  plan.num_tasks = static_cast<int32_t>(scratch.total & 0xFFFF);
  plan.num_passes = static_cast<int32_t>(scratch.total >> 32);
  plan.most_rows = 0;
  for (int w = 0; w < kWarps; ++w) plan.most_rows = max(plan.most_rows, scratch.warp_most[w]);
  for (int32_t pair = thread; pair < pairs; pair += kThreads) {
    const uint16_t expert = scratch.pair_expert[pair];
    if (token_row != nullptr) token_row[pair] = expert == kNoExpert ? -1 : pair;
    if (expert != kNoExpert)
      plan.row_pair[scratch.warp_rows[pair / part_pairs][expert] + scratch.pair_rank[pair]] =
          static_cast<uint16_t>(pair);
  }
}

// What a CTA multiplies at a time: some slabs of an expert's weights by a pass of its rows.
struct Unit {
  int32_t expert;
  int32_t row_begin;  // in row_pair
  int32_t num_rows;
  int32_t slab_begin;  // of the expert's weights
};

// Walks the units of a CTA: its even share of all, unit after unit of one pass over one expert. Each warp walks for
// itself; all lanes call it.
template <int kPassRows>
class UnitWalk {
 public:
  // launch.cu sees to it that units times CTAs fit 32 bits: a 64-bit division takes longer than the plan.
  __device__ UnitWalk(const Plan& plan, uint32_t units_of_pass, int32_t unit_slabs)
      : plan_(plan), unit_slabs_(unit_slabs), units_of_pass_(units_of_pass) {
    const uint32_t units = static_cast<uint32_t>(plan.num_passes) * units_of_pass;
    unit_ = units * blockIdx.x / gridDim.x;
    end_ = units * (blockIdx.x + 1) / gridDim.x;
    if (unit_ < end_) {
      const auto pass = static_cast<int32_t>(unit_ / units_of_pass_);
      task_ = batching::decode_warp(batching::DeviceWarp{}, plan.prefix(), pass).task_idx;
    }
  }

  __device__ bool next(Unit& unit) {
    if (unit_ >= end_) return false;
    const auto pass = static_cast<int32_t>(unit_ / units_of_pass_);
    while (plan_.task_end[task_] <= pass) ++task_;
    const int32_t pass_in_task = pass - (task_ == 0 ? 0 : plan_.task_end[task_ - 1]);
    unit.expert = plan_.task_expert[task_];
    unit.row_begin = plan_.task_row[task_] + pass_in_task * kPassRows;
    unit.num_rows = min(kPassRows, plan_.task_row[task_ + 1] - unit.row_begin);
    unit.slab_begin = static_cast<int32_t>(unit_ % units_of_pass_) * unit_slabs_;
    ++unit_;
    return true;
  }

 private:
  const Plan& plan_;
  int32_t unit_slabs_;
  uint32_t units_of_pass_;
  uint32_t unit_ = 0;
  uint32_t end_ = 0;
  int32_t task_ = 0;
};

}  // namespace tessera::kernels::expert_gemm_rows
