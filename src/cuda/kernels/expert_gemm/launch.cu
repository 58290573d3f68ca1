#include "cuda/kernels/expert_gemm/launch.h"

#include "cuda/core/cuda_check.h"
#include "cuda/grouped/tile_launch.cuh"
#include "cuda/kernels/expert_gemm/kernel.cuh"

namespace tessera::kernels::expert_gemm {
namespace {

struct Kernel {
  template <Role kRole, class Tuning>
  using Config = expert_gemm::Config<kRole, Tuning>;
  template <Role kRole, class Tuning>
  static constexpr auto* entry = &expert_gemm_kernel<kRole, Tuning>;
};

}  // namespace

bool clusters_fit(DType dtype, int32_t cluster_size) {
  if (cluster_size == 1) return true;
  return grouped::with_tile_instance(dtype, Role::gate_up, cluster_size, false, [&](auto role, auto tuning) {
    const grouped::TileLaunch<Kernel, role, decltype(tuning)> launch(cluster_size, nullptr);
    int clusters = 0;
    TESSERA_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, launch.entry, &launch.config));
    return clusters > 0;
  });
}

void launch(const Problem& problem, Role role, const grouped::LaunchOptions& options, cudaStream_t stream) {
  grouped::launch_tiles<Kernel>(problem, role, options, stream);
}

}  // namespace tessera::kernels::expert_gemm
