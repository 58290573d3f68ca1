// The consumer warpgroups: 64 rows of the tile each, from shared memory through the tensor cores to global memory.
#pragma once

#include "cuda/cta/activation.cuh"
#include "cuda/cta/element.cuh"
#include "cuda/cta/mainloop.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/kernels/expert_gemm/kernel.cuh"

namespace tessera::kernels::expert_gemm {

// Adds the bias of the columns this thread holds; every 4 accumulators are 2 columns x 2 rows.
template <class C>
__device__ inline void add_bias(Accumulators& acc, const Params& params, const TileSlot& tile) {
  using Element = typename C::Element;
  const int64_t width = C::kGated ? 2 * static_cast<int64_t>(params.n) : params.n;
  const Element* bias = static_cast<const Element*>(params.bias) + tile.expert * width;
#pragma unroll
  for (int j = 0; j < 32; ++j) {
    constexpr int kHalf = 16;
    const int in_half = C::kGated ? j % kHalf : j;
    const int column = tile.n_block * C::kOutColumns + in_half * 8 + static_cast<int>(threadIdx.x % 4) * 2;
    if (column >= params.n) continue;  // n is a multiple of 8: the pair is inside or outside together
    const bool second_half = C::kGated && (j >= kHalf ? 1 : 0) != params.gate_half;
    const int64_t step = C::kGated && params.interleaved ? 2 : 1;
    const int64_t source = step * column + (second_half ? (params.interleaved ? 1 : params.n) : 0);
    const float b0 = cta::to_float(bias[source]);
    const float b1 = cta::to_float(bias[source + step]);
    acc[4 * j + 0] = __fadd_rn(acc[4 * j + 0], b0);
    acc[4 * j + 1] = __fadd_rn(acc[4 * j + 1], b1);
    acc[4 * j + 2] = __fadd_rn(acc[4 * j + 2], b0);
    acc[4 * j + 3] = __fadd_rn(acc[4 * j + 3], b1);
  }
}

// In place: gate and up of one column lie in the same thread, 64 accumulators apart; the results take the first 64.
template <class C>
__device__ inline void activate(const Activation& activation, Accumulators& acc) {
  if constexpr (C::kGated) {
    cta::with_gated(activation, [&](auto act) {
#pragma unroll
      for (int i = 0; i < 64; ++i) acc[i] = act(acc[i], acc[64 + i]);
    });
  } else if constexpr (C::kGather) {
    cta::with_plain(activation, [&](auto act) {
#pragma unroll
      for (int i = 0; i < 128; ++i) acc[i] = act(acc[i]);
    });
  }
}

// Registers to the warp's staging buffer: 16 rows x 128 columns by stmatrix. Chunk c of row r lies at c ^ (r % 8), as
// TMA expects it, and no bank is met twice.
template <class C>
__device__ inline void stage_pass(uint32_t staging, const Accumulators& acc, int pass) {
  const uint32_t lane = threadIdx.x % 32;
  // Addresses of a block differ by exclusive-or in the chunk bits.
  const uint32_t base =
      ptx::opaque(staging + (lane % 16) * cta::kSwizzleRowBytes + (((lane / 16) ^ (lane % 8)) * cta::kChunkBytes));
#pragma unroll
  for (int jj = 0; jj < 8; ++jj) {
    uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int value = 64 * pass + 8 * jj + 2 * i;
      packed[i] = cta::pack2(typename C::Element{}, acc[value], acc[value + 1]);
    }
    ptx::stmatrix_x4((base ^ (jj % 4 * 2 * cta::kChunkBytes)) + jj / 4 * kStagingBlockBytes, packed[0], packed[1],
                     packed[2], packed[3]);
  }
}

// The rows of a block of 16 that belong to this expert, 16 bytes a lane: a box would overwrite the next expert's rows.
template <class C>
__device__ inline void store_partial(const uint8_t* staging, const Params& params, int64_t out_row, int rows,
                                     int column_begin) {
  using Element = typename C::Element;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int chunk = lane % 8;
#pragma unroll 1
  for (int i = lane / 8; i < 2 * rows; i += 4) {
    const int block = i % 2;
    const int row = i / 2;
    const int column = column_begin + block * 64 + chunk * 8;
    if (column >= params.n) continue;
    const uint4 value =
        *reinterpret_cast<const uint4*>(staging + block * kStagingBlockBytes + cta::swizzled_offset(row, chunk));
    *reinterpret_cast<uint4*>(static_cast<Element*>(params.out) + (out_row + row) * params.n + column) = value;
  }
}

// Writes this warp's 16 rows of the tile. TMA reads the staging buffer while the next tile is multiplied.
template <class C>
__device__ inline void store_tile(uint8_t (&staging)[C::kPolicy.staging_passes][kStagingBytes],
                                  const CUtensorMap& out_map, const Params& params, const Accumulators& acc,
                                  int64_t out_row, int rows_left, int column_begin) {
  constexpr int kBuffers = C::kPolicy.staging_passes;
  const bool is_issuer = threadIdx.x % 32 == 0;
#pragma unroll
  for (int pass = 0; pass < C::kPasses; ++pass) {
    uint8_t* buffer = staging[pass % kBuffers];
    if (pass % kBuffers == 0) {
      if (is_issuer) ptx::bulk_wait_read();
      __syncwarp();  // earlier stores have read the buffers
    }
    stage_pass<C>(cta::smem_address(buffer), acc, pass);
    ptx::fence_proxy_async();  // stmatrix wrote through the generic proxy, TMA reads through the async proxy
    __syncwarp();              // all 16 rows are written and fenced
    const int column = column_begin + pass * kStagingColumns;
    if (rows_left >= kStagingRows) {
      if (is_issuer) {
        for (int block = 0; block < 2; ++block) {
          if (column + block * 64 >= params.n) continue;
          ptx::tma_store_2d(&out_map, column + block * 64, static_cast<int32_t>(out_row),
                            buffer + block * kStagingBlockBytes);
        }
        ptx::bulk_commit();
      }
    } else if (rows_left > 0) {
      store_partial<C>(buffer, params, out_row, rows_left, column);
    }
  }
}

template <class C>
__device__ inline void consume(SharedStorage<C>& smem, const CUtensorMap& out_map, const Params& params,
                               int warpgroup) {
  const int warp_in_group = static_cast<int>(threadIdx.x) / 32 % 4;
  constexpr int kTileColumns = C::kPolicy.tile_columns;
  const int num_k_steps = (params.k + C::kTileK - 1) / C::kTileK;
  cta::RingPosition<C::kStages> ring;
  uint32_t tile_phase = 0;
  Accumulators acc;
  while (true) {
    const TileSlot tile = next_tile(smem, tile_phase);
    if (tile.expert < 0) break;
    if (tile.num_rows <= warpgroup * cta::kWarpgroupRows) {
      cta::skip_k_steps<C::kCluster>(smem, ring, num_k_steps);
      continue;
    }
    cta::multiply_k_steps<typename C::Element, kTileColumns, C::kCluster, C::kGather>(smem, ring, num_k_steps,
                                                                                      warpgroup, acc);
    if (params.bias != nullptr && tile.expert < params.num_routed_experts) add_bias<C>(acc, params, tile);
    activate<C>(params.activation, acc);
    const int row_in_tile = warpgroup * cta::kWarpgroupRows + warp_in_group * kStagingRows;
    store_tile<C>(smem.staging[warpgroup * 4 + warp_in_group], out_map, params, acc, tile.row_begin + row_in_tile,
                  tile.num_rows - row_in_tile, tile.n_block * C::kOutColumns);
  }
  if (threadIdx.x % 32 == 0) ptx::bulk_wait_read();  // shared memory outlives the stores that read it
}

}  // namespace tessera::kernels::expert_gemm
