// The loading warp: weights of this CTA's features, and one half of the input rows for both CTAs.
#pragma once

#include "cuda/kernels/implicit_gemm/kernel.cuh"

namespace tessera::kernels::implicit_gemm {

// Planes of a product, small products first: they are added up while the sums are small, and cost no rounding.
__device__ inline int32_t x_plane(int32_t product, int32_t num_products) {
  return num_products == kMaxProducts && product == 0 ? 1 : 0;
}
__device__ inline int32_t weight_plane(int32_t product, int32_t num_products) {
  return num_products == kMaxProducts && product == 1 ? 1 : 0;
}

// By one thread: the K steps of one pass over a tile.
template <class C>
__device__ inline void load_pass(SharedStorage<C>& smem, cta::RingPosition<C::kStages>& ring, const Params& params,
                                 const Tile& tile, int32_t pass) {
  const TaskParams& task = params.tasks[tile.task];
  const CUtensorMap* x_map = &params.x_maps[tile.task];
  const CUtensorMap* weight_map = &params.weight_maps[tile.task];
  const TileShape& shape = task.shape;
  const int32_t half = static_cast<int32_t>(ptx::cluster_cta_rank());
  const uint32_t half_bytes =
      static_cast<uint32_t>(shape.box_positions() * shape.box_records()) * cta::kSwizzleRowBytes;
  const int32_t record = static_cast<int32_t>(tile.record_begin) + half * shape.records_per_half;
  const int32_t window = shape.records_per_half == 0 ? (2 * pass + half) * shape.half_columns : 0;
  const uint32_t target_offset = static_cast<uint32_t>(half * shape.half_columns) * cta::kSwizzleRowBytes;
  constexpr uint16_t kWholeCluster = (1u << C::kCluster) - 1;
  for (int32_t product = 0; product < params.num_products; ++product) {
    const int32_t x_part = x_plane(product, params.num_products);
    const int32_t weight_part = weight_plane(product, params.num_products);
    int32_t weight_column = 0;
    for (int32_t step = 0; step < task.channel_steps; ++step) {
      // Taps are the inner loop: the same input rows, shifted by one, come from L2 while they are there.
      for (int32_t tap = 0; tap < task.taps; ++tap) {
        cta::wait_phase_cluster(&smem.empty[ring.stage], ring.phase ^ 1);
        ptx::mbarrier_arrive_expect_tx(&smem.full[ring.stage], C::kABytes + 2 * half_bytes);
        const int32_t weight_at[4] = {weight_column, tile.feature_begin, weight_part, 0};
        ptx::tma_load_4d(smem.a[ring.stage], weight_map, weight_at, &smem.full[ring.stage]);
        weight_column += C::kTileK;
        const int32_t x_at[4] = {step * C::kTileK, window + tap, record, x_part};
        ptx::tma_load_4d_multicast(smem.b[ring.stage] + target_offset, x_map, x_at, &smem.full[ring.stage],
                                   kWholeCluster);
        ring.advance();
      }
    }
  }
}

template <class C>
__device__ inline void load_tiles(SharedStorage<C>& smem, const Params& params) {
  cta::RingPosition<C::kStages> ring;
  TileWalk walk(params);
  Tile tile;
  while (walk.next(tile)) {
    if (threadIdx.x == 0) {
      for (int32_t pass = 0; pass < params.tasks[tile.task].shape.num_passes; ++pass) {
        load_pass<C>(smem, ring, params, tile, pass);
      }
    }
    __syncwarp();  // the decode needs all lanes
  }
}

}  // namespace tessera::kernels::implicit_gemm
