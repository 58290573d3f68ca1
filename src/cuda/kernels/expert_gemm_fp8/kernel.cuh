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

// A consumer warpgroup: 64 rows of the tile, from shared memory through the tensor cores to global memory.
//
// A wave takes the tensor cores 256 cycles, and as many pass until the next of this warpgroup should stand behind the
// other's: what can be done while a wave runs is done then, not between it and the next. So a block's first wave is
// issued at the end of the turn before it, when its stage is there and the sums are up to date.
template <class C>
class Consumer {
 public:
  __device__ Consumer(SharedStorage<C>& smem, const CUtensorMap& out_map, const Problem& problem, int warpgroup)
      : smem_(smem),
        out_map_(out_map),
        problem_(problem),
        warpgroup_(warpgroup),
        num_blocks_(grouped::num_k_steps<C>(problem)),
        turns_(warpgroup),
        at_(smem, warpgroup) {}

  __device__ void run() {
    TileSlot tile = skip_without_rows(grouped::next_tile(smem_.mailbox, tile_phase_));
    while (tile.expert >= 0) {
      issue_first(tile);
      if (in_turns(tile)) {
        multiply_blocks<true>(tile);
      } else {
        multiply_blocks<false>(tile);
      }
      const TileSlot next = grouped::next_tile(smem_.mailbox, tile_phase_);  // so that the one after it can be chosen
      grouped::finish_tile(smem_, out_map_, problem_, tile, warpgroup_, static_cast<int>(threadIdx.x) / 32 % 4, sums_);
      tile = skip_without_rows(next);
    }
    turns_.finish();
    if (threadIdx.x % 32 == 0) ptx::bulk_wait_read();  // shared memory outlives the stores that read it
  }

 private:
  static constexpr uint32_t kAStride = C::kABytes >> 4;  // of stages, in descriptors
  static constexpr uint32_t kBStride = C::kBBytes >> 4;
  static constexpr uint32_t kScaleStride = sizeof(grouped::StageScales);

  __device__ bool has_rows(const TileSlot& tile) const {
    return tile.expert >= 0 && tile.num_rows > warpgroup_ * cta::kWarpgroupRows;
  }
  // The other warpgroup has rows of the tile too.
  __device__ static bool in_turns(const TileSlot& tile) { return tile.num_rows > cta::kWarpgroupRows; }

  __device__ TileSlot skip_without_rows(TileSlot tile) {
    while (tile.expert >= 0 && !has_rows(tile)) {
      cta::skip_k_steps<C::kCluster>(smem_, ring_, num_blocks_);
      tile = grouped::next_tile(smem_.mailbox, tile_phase_);
    }
    return tile;
  }

  // The first wave of the stage at hand, which is waited for.
  __device__ void issue_first(const TileSlot& tile) {
    cta::wait_phase(&smem_.full[ring_.stage], ring_.phase);
    const uint32_t a = at_.a + ring_.stage * kAStride;
    const uint32_t b = at_.b + ring_.stage * kBStride;
    const bool takes_turn = in_turns(tile);
    if (takes_turn) turns_.wait();
    multiply_wave<C>(products_, a, b);
    if (takes_turn) turns_.pass();
  }

  // The rest of a tile whose first wave is issued. kInTurns: as in_turns says.
  template <bool kInTurns>
  __device__ void multiply_blocks(const TileSlot& tile) {
    const uint32_t row_scale = at_.row_scale + grouped::row_offset(tile) * static_cast<uint32_t>(sizeof(float));
#pragma unroll
    for (int i = 0; i < C::Accumulators::kRegisters; ++i) sums_[i] = 0.0f;
#pragma unroll 1
    for (int block = 1; block < num_blocks_; ++block) {
      const float2 high = promote_first<kInTurns>(row_scale);
      const int stage = ring_.stage;
      ring_.advance();
      cta::wait_phase(&smem_.full[ring_.stage], ring_.phase);
      promote_second(stage, high);
      const uint32_t a = at_.a + ring_.stage * kAStride;
      const uint32_t b = at_.b + ring_.stage * kBStride;
      if constexpr (kInTurns) turns_.wait();
      multiply_wave<C>(products_, a, b);
      if constexpr (kInTurns) turns_.pass();
    }
    const float2 high = promote_first<kInTurns>(row_scale);
    const int stage = ring_.stage;
    ring_.advance();
    promote_second(stage, high);
  }

  // Adds the products of the first wave, which is in flight, and issues the second; returns the two rows' scales of it.
  template <bool kInTurns>
  __device__ float2 promote_first(uint32_t row_scale) {
    // Opaque: else they are moved to uniform registers before the first wave, which waits for it.
    const uint32_t a = ptx::opaque(at_.a + ring_.stage * kAStride);
    const uint32_t b = ptx::opaque(at_.b + ring_.stage * kBStride + (C::kBoxBytes >> 4));
    const uint32_t offset = ring_.stage * kScaleStride;
    const float row_0 = ptx::load_shared_f32(row_scale + offset);
    const float row_8 = ptx::load_shared_f32(row_scale + offset + 8 * static_cast<uint32_t>(sizeof(float)));
    float2 waves = make_float2(1.0f, 1.0f);
    if constexpr (!C::kWeightRowsScaled) waves = ptx::load_shared_f32x2(at_.wave_scale + offset);
    ptx::wgmma_wait<0>();
    promote<0>(sums_, products_, scaled<C>(row_0, waves.x), scaled<C>(row_8, waves.x));
    if constexpr (kInTurns) turns_.wait();
    multiply_wave<C>(products_, a, b);
    if constexpr (kInTurns) turns_.pass();
    return make_float2(scaled<C>(row_0, waves.y), scaled<C>(row_8, waves.y));
  }

  // Adds those of the second, and gives the stage back.
  __device__ void promote_second(int stage, float2 scales) {
    ptx::wgmma_wait<0>();
    at_.release(stage);
    promote<C::kWaveRegisters>(sums_, products_, scales.x, scales.y);
  }

  SharedStorage<C>& smem_;
  const CUtensorMap& out_map_;
  const Problem& problem_;
  const int warpgroup_;
  const int num_blocks_;
  const Turns turns_;
  const Handles<C> at_;
  cta::RingPosition<C::kStages> ring_;
  uint32_t tile_phase_ = 0;
  typename C::Accumulators sums_;
  ptx::Fragment<C::kWaveColumns> products_;  // of the wave in flight
};

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
    Consumer<C>(smem, out_map, problem, warpgroup - 1).run();
    grouped::leave<C>(options);
  }
}

}  // namespace tessera::kernels::expert_gemm_fp8
