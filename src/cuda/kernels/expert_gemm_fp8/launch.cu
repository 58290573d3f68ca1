#include "cuda/kernels/expert_gemm_fp8/launch.h"

#include "cuda/grouped/tile_launch.cuh"
#include "cuda/kernels/expert_gemm_fp8/kernel.cuh"

namespace tessera::kernels::expert_gemm_fp8 {
namespace {

struct Kernel {
  template <Role kRole, class Tuning>
  using Config = expert_gemm_fp8::Config<kRole, Tuning>;
  template <Role kRole, class Tuning>
  static constexpr auto* entry = &expert_gemm_fp8_kernel<kRole, Tuning>;
};

}  // namespace

void launch(const Problem& problem, Role role, const grouped::LaunchOptions& options, cudaStream_t stream) {
  grouped::launch_tiles<Kernel>(problem, role, options, stream);
}

}  // namespace tessera::kernels::expert_gemm_fp8
