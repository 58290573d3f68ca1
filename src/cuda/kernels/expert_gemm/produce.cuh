// The loading warps: weights by TMA, rows of A by TMA (GEMM 2) or by 16-byte cp.async through the token index (GEMM 1).
#pragma once

#include "cuda/cta/smem_layout.cuh"
#include "cuda/kernels/expert_gemm/kernel.cuh"
#include "cuda/kernels/expert_gemm/schedule.cuh"

namespace tessera::kernels::expert_gemm {

// The weights of this shard's experts, and of the shared experts that follow them.
struct WeightMaps {
  const CUtensorMap& routed;
  const CUtensorMap& shared;
  int32_t num_routed_experts;
  int32_t gate_half;  // 1: the first of the weight's two halves is up; in the tile gate always comes first
};

// The weight tile is two boxes of 128 rows: gate and up rows of the same columns, or two neighbouring row blocks. A CTA
// of a pair that shares weights loads one of them into both CTAs. Coordinates are innermost first: K, row, gate/up,
// expert.
template <class C>
__device__ inline void load_weight_box(SharedStorage<C>& smem, const WeightMaps& weights, const TileSlot& tile,
                                       int stage, int32_t k_begin, int half, bool multicast) {
  const int32_t row = C::kGated ? tile.n_block * C::kBoxRows : (tile.n_block * 2 + half) * C::kBoxRows;
  const bool is_routed = tile.expert < weights.num_routed_experts;
  const CUtensorMap& map = is_routed ? weights.routed : weights.shared;
  const int32_t expert = is_routed ? tile.expert : tile.expert - weights.num_routed_experts;
  const int32_t coordinates[4] = {k_begin, row, C::kGated ? half ^ weights.gate_half : 0, expert};
  uint8_t* target = smem.b[stage] + half * C::kBoxBytes;
  if (multicast) {
    constexpr uint16_t kWholeCluster = (1u << C::kCluster) - 1;
    ptx::tma_load_4d_multicast(target, &map, coordinates, &smem.full[stage], kWholeCluster);
  } else {
    ptx::tma_load_4d(target, &map, coordinates, &smem.full[stage]);
  }
}

// By one thread: announces the bytes of the stage and starts its TMA loads.
template <class C>
__device__ inline void load_boxes(SharedStorage<C>& smem, const WeightMaps& weights, const CUtensorMap& a_map,
                                  const TileSlot& tile, int stage, int32_t k_begin) {
  constexpr uint32_t kStageBytes = C::kBBytes + (C::kGather ? 0 : C::kABytes);
  ptx::mbarrier_arrive_expect_tx(&smem.full[stage], kStageBytes);
  if constexpr (!C::kGather) ptx::tma_load_2d(smem.a[stage], &a_map, k_begin, tile.row_begin, &smem.full[stage]);
  if (C::kCluster > 1 && tile.shares_weights) {
    load_weight_box(smem, weights, tile, stage, k_begin, static_cast<int>(ptx::cluster_cta_rank()), true);
  } else {
    load_weight_box(smem, weights, tile, stage, k_begin, 0, false);
    load_weight_box(smem, weights, tile, stage, k_begin, 1, false);
  }
}

// A thread's part of the gather: chunk lane % 8 (16 bytes) of row lane / 8 of every row quad that its warp copies; warp
// w takes the quads w, w + warps, ... of the tile. A warp that issues one instruction at a time is what limits the
// gather, so addresses are kept as pointers that advance by a step, and quads are predicated only in tiles that are not
// full. Rows past the tile's last keep what the stage held: they only reach accumulator rows that are never stored.
template <class C>
class RowGather {
 public:
  __device__ RowGather(SharedStorage<C>& smem, const Params& params, int warp) : params_(params) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    chunk_ = lane % kChunks;
    first_row_ = warp * kQuadRows + lane / kChunks;
    target_ = cta::smem_address(smem.a) + cta::swizzled_offset(first_row_, chunk_);
  }

  __device__ void select(const TileSlot& tile) {
    num_rows_ = tile.num_rows;
    const int64_t row_bytes = static_cast<int64_t>(params_.k) * 2;
    const char* column = static_cast<const char*>(params_.tokens) + chunk_ * cta::kChunkBytes;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int row = first_row_ + i * kRowStep;
      source_[i] = row < num_rows_ ? column + params_.plan.row_token[tile.row_begin + row] * row_bytes : column;
    }
  }

  // Copies the next 64 columns, of which `columns_left` (8 or more) exist, the others being zero.
  __device__ void load(int stage, int columns_left) {
    const uint32_t stage_target = target_ + stage * C::kABytes;
    if (num_rows_ == cta::kTileRows && columns_left >= C::kTileK) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (i < kQuads - 1 || kFullQuads || first_row_ + i * kRowStep < cta::kTileRows)
          ptx::cp_async_16(place(stage_target, i), source_[i]);
      }
    } else {
      const bool exists = chunk_ * 8 < columns_left;
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (first_row_ + i * kRowStep < num_rows_)
          ptx::cp_async_16_or_zero(place(stage_target, i), exists ? source_[i] : params_.tokens, exists);
      }
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) source_[i] += C::kTileK * 2;
  }

 private:
  static constexpr int kChunks = cta::kSwizzleRowBytes / cta::kChunkBytes;
  static constexpr int kQuadRows = 32 / kChunks;
  static constexpr int kRowStep = kQuadRows * C::kGatherWarps;
  static constexpr int kQuads = (cta::kTileRows + kRowStep - 1) / kRowStep;
  static constexpr bool kFullQuads = kQuads * kRowStep == cta::kTileRows;

  // i odd moves half a swizzle atom: the row's place in the atom changes by 4, so chunk bit 2 flips.
  __device__ static uint32_t place(uint32_t stage_target, int i) {
    const uint32_t row_zero = (i * kRowStep) % 8 == 0 ? stage_target : stage_target ^ (4 * cta::kChunkBytes);
    return row_zero + i * kRowStep * cta::kSwizzleRowBytes;
  }

  const Params& params_;
  int chunk_;
  int first_row_;
  int num_rows_ = 0;
  uint32_t target_;
  const char* source_[kQuads];
};

// Consumers of both CTAs have released the stage: a multicast box also lands in the other CTA.
template <class C>
__device__ inline void wait_until_empty(SharedStorage<C>& smem, const cta::RingPosition<C::kStages>& ring) {
  cta::wait_phase(&smem.empty[ring.stage], ring.phase ^ 1);
}

template <class C>
__device__ inline void load_step(SharedStorage<C>& smem, const WeightMaps& weights, const CUtensorMap& a_map,
                                 const TileSlot& tile, cta::RingPosition<C::kStages>& ring, int step) {
  wait_until_empty(smem, ring);
  if (threadIdx.x % 32 == 0) load_boxes(smem, weights, a_map, tile, ring.stage, step * C::kTileK);
  ring.advance();
  __syncwarp();
}

// The first warp of GEMM 1, whose other three gather: loads weights, and meanwhile chooses the next tile, in parts that
// never wait long.
template <class C>
__device__ inline void load_and_schedule(SharedStorage<C>& smem, const WeightMaps& weights, const CUtensorMap& a_map,
                                         const Params& params) {
  constexpr int kForwardStep = 2;
  constexpr int kPublishStep = C::kStages + 1;  // a stage was reused: the consumers have begun this tile
  const int num_steps = (params.k + C::kTileK - 1) / C::kTileK;
  TileScheduler<C> scheduler(smem, params);
  cta::RingPosition<C::kStages> ring;
  scheduler.request();
  scheduler.forward();
  TileSlot tile = scheduler.publish();
  while (tile.expert >= 0) {
    TileSlot next = tile;
    scheduler.request();
    for (int step = 0; step < num_steps; ++step) {
      load_step(smem, weights, a_map, tile, ring, step);
      if (step == min(kForwardStep, num_steps - 1)) scheduler.forward();
      if (step == min(kPublishStep, num_steps - 1)) next = scheduler.publish();
    }
    tile = next;
  }
}

// GEMM 2 has warps to spare: one loads, one chooses tiles.
template <class C>
__device__ inline void load_tiles(SharedStorage<C>& smem, const WeightMaps& weights, const CUtensorMap& a_map,
                                  const Params& params) {
  const int num_steps = (params.k + C::kTileK - 1) / C::kTileK;
  cta::RingPosition<C::kStages> ring;
  uint32_t tile_phase = 0;
  while (true) {
    const TileSlot tile = next_tile(smem, tile_phase);
    if (tile.expert < 0) return;
    for (int step = 0; step < num_steps; ++step) load_step(smem, weights, a_map, tile, ring, step);
  }
}

template <class C>
__device__ inline void schedule_tiles(SharedStorage<C>& smem, const Params& params) {
  TileScheduler<C> scheduler(smem, params);
  TileSlot tile{};
  while (tile.expert >= 0) {
    scheduler.request();
    scheduler.forward();
    tile = scheduler.publish();
  }
}

// The other loading warps of GEMM 1.
template <class C>
__device__ inline void gather_tiles(SharedStorage<C>& smem, const Params& params, int warp) {
  RowGather<C> gather(smem, params, warp);
  cta::RingPosition<C::kStages> ring;
  uint32_t tile_phase = 0;
  while (true) {
    const TileSlot tile = next_tile(smem, tile_phase);
    if (tile.expert < 0) return;
    gather.select(tile);
    for (int32_t k_begin = 0; k_begin < params.k; k_begin += C::kTileK) {
      wait_until_empty(smem, ring);
      gather.load(ring.stage, params.k - k_begin);
      ptx::cp_async_arrive_noinc(&smem.full[ring.stage]);
      ring.advance();
    }
  }
}

}  // namespace tessera::kernels::expert_gemm
