// Device plan: a stable counting sort of (token, slot) pairs by expert, and the tile prefixes over non-empty experts.
//
//   count_kernel   one CTA a chunk of pairs: chunk_counts[chunk][e]
//   place_kernel   one CTA a chunk: base[e] = rows of smaller experts + rows of e in earlier chunks (the table),
//                  then ranks inside the chunk, then row_token / token_row
//                  one more CTA: counts, offsets, task order, tile prefixes
//
// With a single chunk place_kernel counts for itself and count_kernel is not launched. Ranks are stable because warp w
// of a chunk owns its w-th contiguous part, walks it 32 pairs at a time, and a pair's rank among equal ids of its warp
// step is the number of lower lanes with the same id (__match_any_sync).
#pragma once

#include <cstdint>

#include "cuda/cta/mark.cuh"
#include "cuda/grouped/pair_expert.cuh"
#include "cuda/kernels/moe_plan/launch.h"
#include "cuda/kernels/moe_plan/policy.h"
#include "cuda/ptx/cluster.cuh"
#include "tessera/batching/plan.h"

namespace tessera::kernels::moe_plan {

inline constexpr int kThreads = default_policy().threads;
inline constexpr int kWarps = kThreads / 32;
inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

struct Params : Args {
  int32_t num_pairs;  // T * num_slots
  Chunking chunking;
  cuda::KernelMarks* marks;  // [1] of this kernel; unused unless kMarked
};

// counts[e] += pairs of expert e in this chunk. Integer atomics: the sum does not depend on their order.
__device__ inline void count_chunk(const Params& params, int32_t chunk, int32_t* counts) {
  const int64_t begin = static_cast<int64_t>(chunk) * params.chunking.chunk_pairs;
  for (int32_t i = threadIdx.x; i < params.chunking.chunk_pairs; i += kThreads) {
    const int32_t expert = grouped::expert_of(params, begin + i);
    if (expert >= 0) atomicAdd(&counts[expert], 1);
  }
}

template <bool kMarked>
__global__ void __launch_bounds__(kThreads, 1) count_kernel(const __grid_constant__ Params params) {
  __shared__ int32_t counts[kThreads];
  cta::mark<kMarked>(params.marks, &cuda::KernelMarks::begin);
  ptx::launch_dependents();
  counts[threadIdx.x] = 0;
  ptx::wait_for_prerequisites();
  cta::mark<kMarked>(params.marks, &cuda::KernelMarks::work);
  __syncthreads();  // counts are zero
  count_chunk(params, static_cast<int32_t>(blockIdx.x), counts);
  __syncthreads();  // counts are complete
  const int32_t expert = static_cast<int32_t>(threadIdx.x);
  if (expert < params.num_experts) params.plan.chunk_counts[blockIdx.x * params.num_experts + expert] = counts[expert];
  cta::mark_end<kMarked>(params.marks);
}

// Inclusive sum over the CTA's threads; all threads call it. `warp_sums` is scratch.
__device__ inline int32_t cta_inclusive_sum(int32_t value, int32_t (&warp_sums)[kWarps]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += other;
  }
  __syncthreads();  // an earlier call's warp_sums have been read
  if (lane == 31) warp_sums[warp] = value;
  __syncthreads();  // every warp's total is written
  int32_t before = lane < warp ? warp_sums[lane] : 0;
  for (int distance = 16; distance > 0; distance /= 2) before += __shfl_xor_sync(kAllLanes, before, distance);
  return value + before;
}

struct PlaceStorage {
  int32_t total[kThreads];    // rows of each expert
  int32_t earlier[kThreads];  // rows of each expert in earlier chunks; later: the expert's first row in this chunk
  int32_t warp_sums[kWarps];
  uint64_t keys[kThreads];  // prefix CTA only
};

// total[] and earlier[] from the table; the threads of the CTA share the chunks of each expert.
__device__ inline void read_table(const Params& params, int32_t chunk, PlaceStorage& smem) {
  smem.total[threadIdx.x] = 0;
  smem.earlier[threadIdx.x] = 0;
  __syncthreads();  // sums are zero
  if (params.chunking.num_chunks == 1) {
    count_chunk(params, 0, smem.total);
  } else {
    const int32_t threads_per_expert = kThreads / params.num_experts;
    const int32_t expert = static_cast<int32_t>(threadIdx.x) % params.num_experts;
    const int32_t first = static_cast<int32_t>(threadIdx.x) / params.num_experts;
    int32_t total = 0;
    int32_t earlier = 0;
    if (first < threads_per_expert) {
#pragma unroll 8
      for (int32_t c = first; c < params.chunking.num_chunks; c += threads_per_expert) {
        const int32_t count = params.plan.chunk_counts[c * params.num_experts + expert];
        total += count;
        if (c < chunk) earlier += count;
      }
      atomicAdd(&smem.total[expert], total);
      atomicAdd(&smem.earlier[expert], earlier);
    }
  }
  __syncthreads();  // sums are complete
}

// Gives every pair of the chunk its row. warp_counts[w][e]: first the pairs of expert e in warp w's part, then their
// running position inside the chunk.
__device__ inline void place_chunk(const Params& params, int32_t chunk, PlaceStorage& smem, uint16_t* warp_counts) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int32_t experts = params.num_experts;
  const int32_t warp_pairs = params.chunking.chunk_pairs / kWarps;
  const int64_t begin =
      static_cast<int64_t>(chunk) * params.chunking.chunk_pairs + static_cast<int64_t>(warp) * warp_pairs;
  uint16_t* counts = warp_counts + warp * experts;
  for (int32_t e = lane; e < experts; e += 32) counts[e] = 0;
  __syncwarp();  // this warp's counts are zero
  for (int32_t i = 0; i < warp_pairs; i += 32) {
    const int32_t expert = grouped::expert_of(params, begin + i + lane);
    const uint32_t same = __match_any_sync(kAllLanes, expert);
    if (expert >= 0 && lane == __ffs(same) - 1) counts[expert] = static_cast<uint16_t>(counts[expert] + __popc(same));
    __syncwarp();  // the next step reads these counts
  }
  const int32_t expert_of_thread = static_cast<int32_t>(threadIdx.x);
  const int32_t total = smem.total[threadIdx.x];
  const int32_t offset =
      cta_inclusive_sum(total, smem.warp_sums) - total;  // its barriers also complete all warps' counts
  if (expert_of_thread < experts) {
    smem.earlier[threadIdx.x] += offset;
    uint16_t warp_count[kWarps];  // all loads before the first store: they would wait for one another
#pragma unroll
    for (int w = 0; w < kWarps; ++w) warp_count[w] = warp_counts[w * experts + expert_of_thread];
    uint32_t running = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      warp_counts[w * experts + expert_of_thread] = static_cast<uint16_t>(running);
      running += warp_count[w];
    }
  }
  __syncthreads();  // first rows and running positions are complete
  for (int32_t i = 0; i < warp_pairs; i += 32) {
    const int64_t pair = begin + i + lane;
    const int32_t expert = grouped::expert_of(params, pair);
    const uint32_t same = __match_any_sync(kAllLanes, expert);
    const uint32_t lower = same & ((1u << lane) - 1);
    int32_t row = -1;
    if (expert >= 0) row = smem.earlier[expert] + counts[expert] + __popc(lower);
    __syncwarp();  // all lanes have read the counts
    if (expert >= 0 && lower == 0) counts[expert] = static_cast<uint16_t>(counts[expert] + __popc(same));
    __syncwarp();  // the next step reads these counts
    if (pair < params.num_pairs) {
      params.plan.token_row[pair] = row;
      if (row >= 0) params.plan.row_token[row] = static_cast<int32_t>(pair / params.num_slots);
    }
  }
}

// Sorts keys[0, size) ascending, size a power of two <= kThreads; all threads call it.
__device__ inline void bitonic_sort(uint64_t* keys, int32_t size) {
  const int32_t i = static_cast<int32_t>(threadIdx.x);
  for (int32_t run = 2; run <= size; run *= 2) {
    for (int32_t distance = run / 2; distance > 0; distance /= 2) {
      __syncthreads();  // the previous step's exchanges are written
      const int32_t partner = i ^ distance;
      if (i < size && partner > i) {
        const uint64_t a = keys[i];
        const uint64_t b = keys[partner];
        if ((a > b) == ((i & run) == 0)) {
          keys[i] = b;
          keys[partner] = a;
        }
      }
    }
  }
  __syncthreads();  // sorted
}

// The same for up to kThreads distinct keys of which UINT64_MAX are dropped: each thread counts the smaller ones. One
// barrier instead of a bitonic sort's log^2, so faster while keys are few.
inline constexpr int32_t kCountingSortLimit = 256;

__device__ inline void counting_sort(uint64_t* keys, int32_t size) {
  const int32_t i = static_cast<int32_t>(threadIdx.x);
  __syncthreads();  // keys are written
  const uint64_t key = keys[i];
  int32_t rank = 0;
  if (i < size) {
#pragma unroll 8
    for (int32_t j = 0; j < size; ++j) rank += keys[j] < key ? 1 : 0;
  }
  __syncthreads();  // keys have been read
  if (i < size && key != UINT64_MAX) keys[rank] = key;
  __syncthreads();  // sorted
}

// Counts, offsets, task order and both tile prefixes. Thread e holds expert e, later the task of rank e.
__device__ inline void build_prefix(const Params& params, PlaceStorage& smem) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const grouped::PlanView& plan = params.plan;
  const bool is_expert = thread < params.num_experts;
  const int32_t rows = is_expert ? smem.total[thread] : 0;
  const int32_t rows_end = cta_inclusive_sum(rows, smem.warp_sums);
  if (is_expert) {
    plan.expert_counts[thread] = rows;
    plan.expert_offsets[thread + 1] = rows_end;
  }
  if (thread == 0) plan.expert_offsets[0] = 0;
  // Keys sort non-empty experts first: by index, or by falling rows and then index.
  const uint64_t weight = params.order == batching::TaskOrder::natural ? 0 : static_cast<uint64_t>(INT32_MAX - rows);
  smem.keys[thread] = rows > 0 ? (weight << 32) | static_cast<uint32_t>(thread) : UINT64_MAX;
  int32_t size = 2;
  while (size < params.num_experts) size *= 2;
  size <= kCountingSortLimit ? counting_sort(smem.keys, size) : bitonic_sort(smem.keys, size);
  const int32_t num_tasks = __syncthreads_count(rows > 0);
  int32_t task_expert = -1;
  if (thread < num_tasks) {
    // Interleaved: heaviest, lightest, second heaviest, second lightest, ...
    const int32_t alternating = thread % 2 == 0 ? thread / 2 : num_tasks - 1 - thread / 2;
    const int32_t source = params.order == batching::TaskOrder::interleaved ? alternating : thread;
    task_expert = static_cast<int32_t>(smem.keys[source] & 0xFFFFFFFFu);
    plan.task_order[thread] = task_expert;
  }
  const int32_t task_rows = task_expert >= 0 ? smem.total[task_expert] : 0;
  for (int gemm = 0; gemm < grouped::kNumGemms; ++gemm) {
    const int32_t tiles = task_expert >= 0 ? params.tilings[gemm].num_tiles(task_rows) : 0;
    const int32_t tile_end = cta_inclusive_sum(tiles, smem.warp_sums);
    if (thread < num_tasks) plan.tile_end[gemm][thread] = tile_end;
    if (thread == kThreads - 1) plan.header->num_tiles[gemm] = tile_end;
    if (thread == 0) plan.header->tile_tickets[gemm] = 0;
  }
  if (thread == kThreads - 1) plan.header->num_rows = rows_end;
  if (thread == 0) plan.header->num_tasks = num_tasks;
}

template <bool kMarked>
__global__ void __launch_bounds__(kThreads, 1) place_kernel(const __grid_constant__ Params params) {
  extern __shared__ uint16_t warp_counts[];  // [kWarps][E]
  __shared__ PlaceStorage smem;
  cta::mark<kMarked>(params.marks, &cuda::KernelMarks::begin);
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  cta::mark<kMarked>(params.marks, &cuda::KernelMarks::work);
  const int32_t chunk = static_cast<int32_t>(blockIdx.x);
  read_table(params, chunk, smem);
  if (chunk < params.chunking.num_chunks) {
    place_chunk(params, chunk, smem, warp_counts);
  } else {
    build_prefix(params, smem);
  }
  cta::mark_end<kMarked>(params.marks);
}

}  // namespace tessera::kernels::moe_plan
