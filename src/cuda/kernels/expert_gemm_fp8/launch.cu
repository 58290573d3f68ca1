#include "cuda/kernels/expert_gemm_fp8/launch.h"

#include "cuda/grouped/tile_launch.cuh"
#include "cuda/kernels/expert_gemm_fp8/kernel.cuh"

namespace tessera::kernels::expert_gemm_fp8 {
namespace {

template <bool kRowsScaled>
struct Kernel {
  template <Role kRole, class Tuning>
  using Config = expert_gemm_fp8::Config<kRole, Tuning, kRowsScaled>;
  template <Role kRole, class Tuning>
  static constexpr auto* entry = &expert_gemm_fp8_kernel<kRole, Tuning, kRowsScaled>;
};

}  // namespace

void launch(const Problem& problem, Role role, const grouped::LaunchOptions& options, cudaStream_t stream) {
  grouped::with_bool(problem.weight_rows_scaled, [&](auto rows_scaled) {
    grouped::launch_tiles<Kernel<rows_scaled>>(problem, role, options, stream);
  });
}

}  // namespace tessera::kernels::expert_gemm_fp8
