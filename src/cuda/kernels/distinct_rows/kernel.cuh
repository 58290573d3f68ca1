// Distinct rows: hash, first row of each hash, verification, numbering, compaction.
//
//   hash_kernel     a warp a row        row -> hash -> slot of the hash table; the slot keeps the lowest row
//   verify_kernel   a warp a row        representative[row] = first row of its hash if all bits are equal, else row
//   count_kernel    a thread a row      tile_begin[tile] = rows of the tile that represent themselves
//   scan_kernel     one CTA             tile_begin = exclusive running totals, num_distinct
//   number_kernel   a thread a row      number[row] of those that represent themselves, in the order of rows
//   compact_kernel  a warp a row        row_index[row] = number[representative[row]]; copies
//
// Tokens: first_token_kernel instead of the hash table (a slot an id), token_kernel instead of verification.
//
// Which slot a hash lands in depends on timing; which row is the lowest of a hash does not, and nothing else is used.
// Every kernel is a launch of its own: what one writes, the next reads.
#pragma once

#include <cstdint>

#include "cuda/core/operand.h"
#include "cuda/kernels/distinct_rows/policy.h"

namespace tessera::kernels::distinct_rows {

inline constexpr Policy kPolicy = default_policy();
inline constexpr int kLanes = 32;
inline constexpr int kRowsPerCta = kPolicy.row_threads / kLanes;
inline constexpr int kTileRows = kPolicy.tile_threads;
inline constexpr int kTileWarps = kTileRows / kLanes;
inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
static_assert(kTileWarps <= kLanes, "one warp adds the sums of all");

// Slots are cleared by bytes of 0xFF: no key, and a first row that every row is below.
using Key = unsigned long long;  // the type that atomicCAS takes
inline constexpr Key kNoKey = ~Key{0};

// From a representative for every row to numbers.
struct Numbering {
  int32_t* representative;  // [num_rows] the first row that is equal, by what is known
  int32_t* number;          // [num_rows] where a row represents itself: its place among those
  int32_t* tile_begin;      // [num_tiles] counts, then numbers of the tiles' first
  int32_t* num_distinct;    // [1]
  int64_t num_rows;
  int32_t num_tiles;  // of kTileRows rows
};

struct RowParams {
  cta::OperandView rows;      // [planes][num_rows, stride]
  cta::OperandView distinct;  // the same, or null data
  int32_t row_chunks;         // 16-byte chunks of a row in a plane that count
  int32_t num_planes;
  Key* keys;            // [num_slots]
  uint32_t* first_row;  // [num_slots]
  uint32_t slot_mask;   // num_slots - 1
  uint32_t* row_slot;   // [num_rows]
  uint64_t hash_mask;
  int32_t* row_index;  // [num_rows]
  Numbering numbering;
};

struct TokenParams {
  const int32_t* ids;     // [num_rows]
  uint32_t* first_row;    // [vocab_size]
  int32_t* distinct_ids;  // [num_distinct]
  int32_t* row_index;     // [num_rows]
  Numbering numbering;
};

__device__ inline int32_t lane_idx() { return static_cast<int32_t>(threadIdx.x) % kLanes; }

// Row of this warp where a CTA's warps take a row each, of this thread where its threads do.
__device__ inline int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kRowsPerCta + threadIdx.x / kLanes;
}
__device__ inline int64_t row_of_thread() { return static_cast<int64_t>(blockIdx.x) * kTileRows + threadIdx.x; }

__device__ inline uint4* plane_row(const cta::OperandView& view, int32_t plane, int64_t row) {
  return static_cast<uint4*>(view.data) + (plane * view.plane_stride + row * view.stride) / 8;
}

// A bijection of 64 bits in which every input bit reaches every output bit.
__device__ inline uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCDull;
  value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53ull;
  return value ^ (value >> 33);
}

// One more word: a bijection of the state for every word and of the word for every state, so that what differs in one
// word of a lane ends in different states.
__device__ inline uint64_t absorb(uint64_t state, uint32_t low, uint32_t high) {
  state = (state ^ (static_cast<uint64_t>(high) << 32 | low)) * 0x9E3779B97F4A7C15ull;
  return state ^ (state >> 29);
}

// Hash of a row, the same in all lanes. Lanes start in different states: the order of chunks counts, in a lane and
// between lanes.
__device__ inline uint64_t hash_row(const RowParams& params, int64_t row) {
  uint64_t state = mix(static_cast<uint64_t>(lane_idx()) + 1);
  for (int32_t plane = 0; plane < params.num_planes; ++plane) {
    const uint4* chunks = plane_row(params.rows, plane, row);
#pragma unroll 4
    for (int32_t c = lane_idx(); c < params.row_chunks; c += kLanes) {
      const uint4 chunk = __ldg(&chunks[c]);
      state = absorb(absorb(state, chunk.x, chunk.y), chunk.z, chunk.w);
    }
  }
  state = mix(state);
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) state += __shfl_xor_sync(kAllLanes, state, distance);
  return mix(state);
}

// Slot that holds this key, or an empty one that now does. At most half of the slots are ever taken, so it ends.
__device__ inline uint32_t find_slot(const RowParams& params, Key key) {
  uint32_t slot = static_cast<uint32_t>(key) & params.slot_mask;
  while (true) {
    Key found = *static_cast<const volatile Key*>(&params.keys[slot]);  // changes once, from kNoKey
    if (found == kNoKey) found = atomicCAS(&params.keys[slot], kNoKey, key);
    if (found == kNoKey || found == key) return slot;
    slot = (slot + 1) & params.slot_mask;
  }
}

// Rows come roughly in order: reading first spares nearly all the atomics of a row that is there a thousand times. A
// value that is out of date is too large and only costs an atomic.
__device__ inline void take_lowest(uint32_t* first_row, int64_t row) {
  const auto value = static_cast<uint32_t>(row);
  if (*static_cast<const volatile uint32_t*>(first_row) > value) atomicMin(first_row, value);
}

__global__ void __launch_bounds__(kPolicy.row_threads) hash_kernel(const __grid_constant__ RowParams params) {
  const int64_t row = row_of_warp();
  if (row >= params.numbering.num_rows) return;  // the whole warp
  const Key hash = hash_row(params, row) & params.hash_mask;
  if (lane_idx() != 0) return;
  const uint32_t slot = find_slot(params, hash == kNoKey ? Key{0} : hash);
  take_lowest(&params.first_row[slot], row);
  params.row_slot[row] = slot;
}

__device__ inline bool rows_differ(const RowParams& params, int64_t row, int64_t other) {
  uint32_t difference = 0;
  for (int32_t plane = 0; plane < params.num_planes; ++plane) {
    const uint4* chunks = plane_row(params.rows, plane, row);
    const uint4* other_chunks = plane_row(params.rows, plane, other);
#pragma unroll 4
    for (int32_t c = lane_idx(); c < params.row_chunks; c += kLanes) {
      const uint4 a = __ldg(&chunks[c]);
      const uint4 b = __ldg(&other_chunks[c]);
      difference |= (a.x ^ b.x) | (a.y ^ b.y) | (a.z ^ b.z) | (a.w ^ b.w);
    }
  }
  return __any_sync(kAllLanes, difference != 0) != 0;
}

__global__ void __launch_bounds__(kPolicy.row_threads) verify_kernel(const __grid_constant__ RowParams params) {
  const int64_t row = row_of_warp();
  if (row >= params.numbering.num_rows) return;  // the whole warp
  const int64_t first = params.first_row[params.row_slot[row]];
  const bool is_own = first == row || rows_differ(params, row, first);
  if (lane_idx() == 0) params.numbering.representative[row] = static_cast<int32_t>(is_own ? row : first);
}

__global__ void __launch_bounds__(kTileRows) first_token_kernel(const __grid_constant__ TokenParams params) {
  const int64_t row = row_of_thread();
  if (row < params.numbering.num_rows) take_lowest(&params.first_row[params.ids[row]], row);
}

__global__ void __launch_bounds__(kTileRows) token_kernel(const __grid_constant__ TokenParams params) {
  const int64_t row = row_of_thread();
  if (row >= params.numbering.num_rows) return;
  params.numbering.representative[row] = static_cast<int32_t>(params.first_row[params.ids[row]]);
}

__device__ inline bool is_distinct(const Numbering& numbering, int64_t row) {
  return row < numbering.num_rows && numbering.representative[row] == row;
}

__global__ void __launch_bounds__(kTileRows) count_kernel(const __grid_constant__ Numbering numbering) {
  const int32_t count = __syncthreads_count(is_distinct(numbering, row_of_thread()));
  if (threadIdx.x == 0) numbering.tile_begin[blockIdx.x] = count;
}

// Sum of the values of this thread and all before it; all threads call it.
__device__ inline int32_t cta_inclusive_sum(int32_t value, int32_t (&warp_sums)[kLanes]) {
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / kLanes;
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    const int32_t lower = __shfl_up_sync(kAllLanes, value, distance);
    if (lane_idx() >= distance) value += lower;
  }
  if (lane_idx() == kLanes - 1) warp_sums[warp] = value;
  __syncthreads();  // the warps' sums are written
  int32_t before = 0;
  for (int32_t w = 0; w < warp; ++w) before += warp_sums[w];
  __syncthreads();  // they have been read: the next call may write them
  return before + value;
}

__global__ void __launch_bounds__(kTileRows) scan_kernel(const __grid_constant__ Numbering numbering) {
  __shared__ int32_t warp_sums[kLanes];
  __shared__ int32_t step_sum;
  int32_t before = 0;
  for (int32_t first = 0; first < numbering.num_tiles; first += kTileRows) {
    const int32_t tile = first + static_cast<int32_t>(threadIdx.x);
    const int32_t count = tile < numbering.num_tiles ? numbering.tile_begin[tile] : 0;
    const int32_t end = cta_inclusive_sum(count, warp_sums);
    if (tile < numbering.num_tiles) numbering.tile_begin[tile] = before + end - count;
    if (threadIdx.x == kTileRows - 1) step_sum = end;
    __syncthreads();  // the step's sum is written; the barriers of the next step's sum come before it is written again
    before += step_sum;
  }
  if (threadIdx.x == 0) *numbering.num_distinct = before;
}

__global__ void __launch_bounds__(kTileRows) number_kernel(const __grid_constant__ Numbering numbering) {
  __shared__ int32_t warp_sums[kLanes];
  const int64_t row = row_of_thread();
  const int32_t count = is_distinct(numbering, row) ? 1 : 0;
  const int32_t end = cta_inclusive_sum(count, warp_sums);
  if (count != 0) numbering.number[row] = numbering.tile_begin[blockIdx.x] + end - 1;
}

__global__ void __launch_bounds__(kPolicy.row_threads) compact_kernel(const __grid_constant__ RowParams params) {
  const int64_t row = row_of_warp();
  if (row >= params.numbering.num_rows) return;  // the whole warp
  const int32_t representative = params.numbering.representative[row];
  const int32_t number = params.numbering.number[representative];
  if (lane_idx() == 0) params.row_index[row] = number;
  if (representative != row || params.distinct.data == nullptr) return;
  for (int32_t plane = 0; plane < params.num_planes; ++plane) {
    const uint4* from = plane_row(params.rows, plane, row);
    uint4* to = plane_row(params.distinct, plane, number);
#pragma unroll 4
    for (int32_t c = lane_idx(); c < params.row_chunks; c += kLanes) to[c] = __ldg(&from[c]);
  }
}

__global__ void __launch_bounds__(kTileRows) compact_tokens_kernel(const __grid_constant__ TokenParams params) {
  const int64_t row = row_of_thread();
  if (row >= params.numbering.num_rows) return;
  const int32_t representative = params.numbering.representative[row];
  const int32_t number = params.numbering.number[representative];
  params.row_index[row] = number;
  if (representative == row) params.distinct_ids[number] = params.ids[row];
}

}  // namespace tessera::kernels::distinct_rows
