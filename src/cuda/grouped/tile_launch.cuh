// Launches a kernel that works in tiles (tile_config.cuh): of its instances the one for a run, with the tensor maps of
// the Problem, in clusters.
//
//   struct Kernel {
//     template <Role kRole, class Tuning>
//     using Config = expert_gemm::Config<kRole, Tuning>;
//     template <Role kRole, class Tuning>
//     static constexpr auto* entry = &expert_gemm_kernel<kRole, Tuning>;
//   };
//   grouped::launch_tiles<Kernel>(problem, role, options, stream);
#pragma once

#include <cuda_runtime.h>

#include <array>

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/grouped/instances.cuh"
#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/tensor_maps.h"
#include "cuda/grouped/tile_config.cuh"
#include "cuda/grouped/validation.h"
#include "tessera/core/check.h"

namespace tessera::grouped {

/// Calls function(role as a constant, Tuning) for the instance of these: all are compiled where this is.
template <class Function>
auto with_tile_instance(DType dtype, Role role, int32_t cluster_size, bool is_marked, Function&& function) {
  return with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    return with_bool(is_marked, [&](auto marked) {
      return with_role(role, [&](auto constant) {
        return cluster_size == 2 ? function(constant, Tuning<Element, 2, marked>{})
                                 : function(constant, Tuning<Element, 1, marked>{});
      });
    });
  });
}

/// A launch of one instance: the attributes must outlive the configuration that points at them.
template <class Kernel, Role kRole, class Tuning>
struct TileLaunch {
  using C = typename Kernel::template Config<kRole, Tuning>;

  TileLaunch(int32_t num_ctas, cudaStream_t stream) {
    static_assert(sizeof(TileStorage<C>) <= 227 * 1024);
    cuda::allow_shared_memory<entry>(sizeof(TileStorage<C>));
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = C::kCluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    // The prologue overlaps the previous kernel's end.
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(static_cast<unsigned>(num_ctas / C::kCluster * C::kCluster));
    config.blockDim = dim3(C::kThreads);
    config.dynamicSmemBytes = sizeof(TileStorage<C>);
    config.stream = stream;
    config.attrs = attributes.data();
    config.numAttrs = attributes.size();
  }
  TileLaunch(const TileLaunch&) = delete;

  static constexpr auto* entry = Kernel::template entry<kRole, Tuning>;
  std::array<cudaLaunchAttribute, 2> attributes{};
  cudaLaunchConfig_t config{};
};

/// Throws Error for what no instance with this config can run.
template <class C>
void validate_tiles(const Problem& problem, const LaunchOptions& options) {
  validate(problem, C::kRole);
  TESSERA_CHECK(problem.operand_bytes == C::kElementBytes, problem.operand_bytes, C::kElementBytes);
  const int32_t tile_rows = problem.tilings[gemm_idx(C::kRole)].tile_rows;
  TESSERA_CHECK(tile_rows == C::kPolicy.tile_rows, tile_rows, C::kPolicy.tile_rows);
  TESSERA_CHECK(options.num_ctas >= options.cluster_size, options.num_ctas, options.cluster_size);
}

/// Enqueues one of the two products for all experts. Throws Error for bad arguments, CudaError if the launch fails.
template <class Kernel>
void launch_tiles(const Problem& problem, Role role, const LaunchOptions& options, cudaStream_t stream) {
  if (problem.max_rows == 0) return;
  const bool is_marked = options.marks != nullptr;
  with_tile_instance(problem.dtype, role, options.cluster_size, is_marked, [&](auto constant, auto tuning) {
    using Instance = TileLaunch<Kernel, constant, decltype(tuning)>;
    using C = typename Instance::C;
    validate_tiles<C>(problem, options);
    const Instance launch(options.num_ctas, stream);
    const auto rows =
        C::kGathers ? CUtensorMap{} : a_map(problem, C::kRole, static_cast<uint32_t>(C::kPolicy.tile_rows));
    TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&launch.config, launch.entry, weight_map(problem, C::kRole, C::kBoxRows),
                                          shared_weight_map(problem, C::kRole, C::kBoxRows), rows,
                                          out_map(problem, C::kRole, kStagingRows), problem, options));
  });
}

}  // namespace tessera::grouped
