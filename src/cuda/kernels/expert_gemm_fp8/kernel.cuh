// FP8 expert GEMM: for every expert e and its routed rows r, in one launch,
//
//   out[r, :] = act(sum over blocks b of K of  A_scale[r, b] * W_scale[e, :, b] * (A[r, b] * W[e, b]^T)  + bias[e])
//
//   gate_up, up_only   A[r] = the token of row r    [R, H]    W [E, 2I, H] or [E, I, H]    out [R, I], e4m3 and scales
//   down               A[r] = intermediate row r    [R, I]    W [E, H, I]                  out [R, H], 16 bits
//
// A and W are e4m3, a block is 128 columns of K, and of W also 128 rows. Where W has a scale each row instead, blocks
// have those of A alone, and W's multiply the finished sums. The tensor cores keep 13 bits of a sum of such products,
// so a sum never runs through more than one block: each block's products are added to fp32 sums, scaled.
//
// A CTA has three warpgroups. Per tile of 128 rows x 256 weight rows, per block of K:
//
//   loading warpgroup   as grouped/tile_loading.cuh says
//   2 consumer WGs      64 rows each: wait full[s], then twice, for each 128 weight rows: 4 x WGMMA m64n128k32, wait,
//                       sums += scale * products. The two take turns, so that one multiplies while the other adds.
//
// The sums and one wave's products are 192 registers a thread, more than 384 threads have alike: the loading warpgroup
// gives some of its registers away.
#pragma once

#include <cuda.h>

#include "cuda/cta/mainloop.cuh"
#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/scales.cuh"
#include "cuda/grouped/tile_config.cuh"
#include "cuda/grouped/tile_epilogue.cuh"
#include "cuda/grouped/tile_loading.cuh"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/kernels/expert_gemm_fp8/policy.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/warp.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "tessera/core/e4m3.h"

namespace tessera::kernels::expert_gemm_fp8 {

using grouped::Problem;
using grouped::Role;
using grouped::TileSlot;

// What a role's kernel is compiled for. kRowsScaled: weights have a scale each row in place of blocks.
template <Role kRole, class Tuning, bool kRowsScaled>
struct Config : grouped::TileConfig<kRole, Tuning, default_policy(Tuning::kClusterSize)> {
  static constexpr bool kWeightRowsScaled = kRowsScaled;
  static constexpr int kCopyThreads = kRowsScaled ? 0 : grouped::kScaleCopyLanes;
  static constexpr int kWaveColumns = Config::kPolicy.wave_columns;
  static constexpr int kWaves = Config::kPolicy.tile_columns / kWaveColumns;
  static constexpr int kWaveRegisters = ptx::Fragment<kWaveColumns>::kRegisters;
  static_assert(Config::kElementBytes == 1 && Config::kPolicy.tile_k == kScaleGroup);
  static_assert(kWaveColumns == kScaleGroup && kWaves == 2, "a wave has one scale of weights");
};

template <class C>
using SharedStorage = grouped::TileStorage<C>;

// The consumer warpgroups issue their products in turns, 0 and 1. A turn is passed on and waited for exactly once, over
// all tiles, so that neither comes to a barrier twice before the other has come once. 1 passes the first, 0 takes the
// last that is left.
class Turns {
 public:
  __device__ explicit Turns(int warpgroup) : warpgroup_(warpgroup) {
    if (warpgroup_ == 1) pass();
  }
  __device__ void wait() const { ptx::named_barrier_wait<kThreads>(kFirstBarrier + warpgroup_); }
  __device__ void pass() const { ptx::named_barrier_arrive<kThreads>(kFirstBarrier + 1 - warpgroup_); }
  __device__ void finish() const {
    if (warpgroup_ == 0) wait();
  }

 private:
  static constexpr int kFirstBarrier = 1;  // 0 is __syncthreads
  static constexpr int kThreads = 2 * 128;
  int warpgroup_;
};

// Products of one block of K and one wave of weight rows, into registers of their own. Operands by the low words of
// their descriptors.
template <class C>
__device__ inline void multiply_wave(ptx::Fragment<C::kWaveColumns>& products, uint32_t a, uint32_t b) {
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < cta::kSwizzleRowBytes / 32; ++i) {
    ptx::wgmma<__nv_fp8_e4m3, C::kWaveColumns>(products, cta::wgmma_descriptor_of(a + i * cta::kDescriptorKStep),
                                               cta::wgmma_descriptor_of(b + i * cta::kDescriptorKStep), i > 0);
  }
  ptx::wgmma_commit();
}

// sums += scale * products, for the two rows that a thread holds.
template <int kFirst, class Sums, int kColumns>
__device__ inline void promote(Sums& sums, const ptx::Fragment<kColumns>& products, float scale_0, float scale_8) {
#pragma unroll
  for (int i = 0; i < ptx::Fragment<kColumns>::kRegisters; i += 4) {
    sums[kFirst + i + 0] = __fmaf_rn(products[i + 0], scale_0, sums[kFirst + i + 0]);
    sums[kFirst + i + 1] = __fmaf_rn(products[i + 1], scale_0, sums[kFirst + i + 1]);
    sums[kFirst + i + 2] = __fmaf_rn(products[i + 2], scale_8, sums[kFirst + i + 2]);
    sums[kFirst + i + 3] = __fmaf_rn(products[i + 3], scale_8, sums[kFirst + i + 3]);
  }
}

// The scale of a row's products with a wave.
template <class C>
__device__ inline float scaled(float row, float wave) {
  if constexpr (C::kWeightRowsScaled) return row;
  return __fmul_rn(row, wave);
}

// What a warp of a consumer keeps at hand because it is slow to find: addresses of shared memory, each in a register.
template <class C>
struct Handles {
  __device__ Handles(SharedStorage<C>& smem, int warpgroup)
      : a(ptx::opaque(
            cta::descriptor_low(cta::smem_address(smem.a) + warpgroup * cta::kWarpgroupRows * cta::kSwizzleRowBytes))),
        b(ptx::opaque(cta::descriptor_low(cta::smem_address(smem.b)))) {
    const uint32_t lane = threadIdx.x % 32;
    releases = lane < C::kCluster;
    empty = cta::smem_address(smem.empty);
    if constexpr (C::kCluster > 1) empty = ptx::map_to_cta(smem.empty, lane % C::kCluster);
    empty = ptx::opaque(empty);
    const int row = warpgroup * cta::kWarpgroupRows + static_cast<int>(threadIdx.x % 128 / 32) * 16 +
                    static_cast<int>(threadIdx.x % 32 / 4);
    row_scale = ptx::opaque(cta::smem_address(smem.scales[0].rows + row));
    wave_scale = ptx::opaque(cta::smem_address(smem.scales[0].waves));
  }

  // Gives a stage back to the producers of every CTA of the cluster, as cta::release_stage.
  __device__ void release(int stage) const {
    if (releases) ptx::mbarrier_arrive_cluster(empty + stage * static_cast<uint32_t>(sizeof(uint64_t)));
  }

  uint32_t a, b;   // low words of the descriptors of stage 0
  uint32_t empty;  // of the CTA that this lane speaks to
  bool releases;
  // Of stage 0: this thread's first row's, the second is eight rows below; the first wave's.
  uint32_t row_scale, wave_scale;
};

// sums = the tile's products over all of K, scaled. kInTurns: the other warpgroup has rows of the tile too.
//
// A wave takes the tensor cores 256 cycles, and as many pass until the next of this warpgroup should stand behind the
// other's: what can be done while a wave runs is done then, not between it and the next.
template <class C, bool kInTurns, int kStages>
__device__ inline void multiply_blocks(SharedStorage<C>& smem, cta::RingPosition<kStages>& ring, int num_blocks,
                                       const Handles<C>& at, int row_offset, const Turns& turns,
                                       typename C::Accumulators& sums) {
  ptx::Fragment<C::kWaveColumns> products;
#pragma unroll
  for (int i = 0; i < C::Accumulators::kRegisters; ++i) sums[i] = 0.0f;
  const uint32_t row_scale = at.row_scale + row_offset * static_cast<uint32_t>(sizeof(float));
  cta::wait_phase(&smem.full[ring.stage], ring.phase);
#pragma unroll 1
  for (int block = 1; block <= num_blocks; ++block) {
    const uint32_t a = at.a + ring.stage * static_cast<uint32_t>(sizeof(smem.a[0]) >> 4);
    const uint32_t b = at.b + ring.stage * static_cast<uint32_t>(sizeof(smem.b[0]) >> 4);
    if constexpr (kInTurns) turns.wait();
    multiply_wave<C>(products, a, b);
    if constexpr (kInTurns) turns.pass();
    // Opaque: else they are moved to uniform registers before the first wave, which waits for it.
    const uint32_t a_again = ptx::opaque(a);
    const uint32_t b_second = ptx::opaque(b + (C::kBoxBytes >> 4));
    const int stage = ring.stage;
    const uint32_t offset = stage * static_cast<uint32_t>(sizeof(smem.scales[0]));
    const float row_0 = ptx::load_shared_f32(row_scale + offset);
    const float row_8 = ptx::load_shared_f32(row_scale + offset + 8 * static_cast<uint32_t>(sizeof(float)));
    float2 waves = make_float2(1.0f, 1.0f);
    if constexpr (!C::kWeightRowsScaled) waves = ptx::load_shared_f32x2(at.wave_scale + offset);
    ptx::wgmma_wait<0>();
    promote<0>(sums, products, scaled<C>(row_0, waves.x), scaled<C>(row_8, waves.x));
    if constexpr (kInTurns) turns.wait();
    multiply_wave<C>(products, a_again, b_second);
    if constexpr (kInTurns) turns.pass();
    ring.advance();
    if (block < num_blocks) cta::wait_phase(&smem.full[ring.stage], ring.phase);
    ptx::wgmma_wait<0>();
    at.release(stage);
    promote<C::kWaveRegisters>(sums, products, scaled<C>(row_0, waves.y), scaled<C>(row_8, waves.y));
  }
}

// A consumer warpgroup: 64 rows of the tile, from shared memory through the tensor cores to global memory.
template <class C>
__device__ inline void consume(SharedStorage<C>& smem, const CUtensorMap& out_map, const Problem& problem,
                               int warpgroup) {
  const int warp_in_group = static_cast<int>(threadIdx.x) / 32 % 4;
  const int num_blocks = grouped::num_k_steps<C>(problem);
  cta::RingPosition<C::kStages> ring;
  uint32_t tile_phase = 0;
  const Turns turns(warpgroup);
  const Handles<C> at(smem, warpgroup);
  typename C::Accumulators acc;
  while (true) {
    const TileSlot tile = grouped::next_tile(smem.mailbox, tile_phase);
    if (tile.expert < 0) break;
    if (tile.num_rows <= warpgroup * cta::kWarpgroupRows) {
      cta::skip_k_steps<C::kCluster>(smem, ring, num_blocks);
      continue;
    }
    const int row_offset = grouped::row_offset(tile);
    if (tile.num_rows > cta::kWarpgroupRows) {
      multiply_blocks<C, true>(smem, ring, num_blocks, at, row_offset, turns, acc);
    } else {
      multiply_blocks<C, false>(smem, ring, num_blocks, at, row_offset, turns, acc);
    }
    grouped::finish_tile(smem, out_map, problem, tile, warpgroup, warp_in_group, acc);
  }
  turns.finish();
  if (threadIdx.x % 32 == 0) ptx::bulk_wait_read();  // shared memory outlives the stores that read it
}

template <Role kRole, class Tuning, bool kRowsScaled>
__global__ void __launch_bounds__(Config<kRole, Tuning, kRowsScaled>::kThreads, 1)
    expert_gemm_fp8_kernel(const __grid_constant__ CUtensorMap weight_map,
                           const __grid_constant__ CUtensorMap shared_weight_map,
                           const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap out_map,
                           const __grid_constant__ Problem problem,
                           const __grid_constant__ grouped::LaunchOptions options) {
  using C = Config<kRole, Tuning, kRowsScaled>;
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  auto& smem = *reinterpret_cast<SharedStorage<C>*>(shared_bytes);
  const auto [warp, warpgroup] = grouped::enter(smem, weight_map, a_map, out_map, options);

  // Each side runs to its own end: registers that were moved are counted along a path.
  if (warpgroup == 0) {
    ptx::decrease_registers<C::kPolicy.load_registers>();
    const grouped::WeightMaps weight_maps(weight_map, shared_weight_map, problem);
    grouped::load_warpgroup<C>(smem, weight_maps, a_map, problem, options, warp,
                               grouped::ScaleCopy<C::kRole, !kRowsScaled>(smem.scales, problem));
    grouped::leave<C>(options);
  } else {
    ptx::increase_registers<C::kPolicy.math_registers>();
    consume<C>(smem, out_map, problem, warpgroup - 1);
    grouped::leave<C>(options);
  }
}

}  // namespace tessera::kernels::expert_gemm_fp8
