#include "cuda/kernels/expert_gemm_fp8/launch.h"

#include <array>

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/grouped/instances.cuh"
#include "cuda/grouped/tensor_maps.h"
#include "cuda/grouped/validation.h"
#include "cuda/kernels/expert_gemm_fp8/kernel.cuh"
#include "tessera/core/check.h"

namespace tessera::kernels::expert_gemm_fp8 {
namespace {

// What a kernel is compiled for beside its role: carries the policy into the template.
template <class Element_, int32_t kClusterSize_, bool kMarked_>
struct Tuning {
  using Element = Element_;
  static constexpr int32_t kClusterSize = kClusterSize_;
  static constexpr bool kMarked = kMarked_;  // see cta/mark.cuh
};

// Calls function(role as a constant, Tuning) with the compiled instance for these; each of them is in this file.
template <class Function>
auto with_instance(DType dtype, Role role, int32_t cluster_size, bool is_marked, Function&& function) {
  return grouped::with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    return grouped::with_bool(is_marked, [&](auto marked) {
      return grouped::with_role(role, [&](auto constant) {
        return cluster_size == 2 ? function(constant, Tuning<Element, 2, marked>{})
                                 : function(constant, Tuning<Element, 1, marked>{});
      });
    });
  });
}

// A launch of the kernel: the attributes must outlive the configuration that points at them.
template <Role kRole, class Tuning>
struct Launch {
  using C = Config<kRole, Tuning>;

  Launch(int32_t num_ctas, cudaStream_t stream) {
    static_assert(sizeof(SharedStorage<C>) <= 227 * 1024);
    cuda::allow_shared_memory<kernel>(sizeof(SharedStorage<C>));
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = C::kCluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    // The prologue overlaps the previous kernel's end.
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(static_cast<unsigned>(num_ctas / C::kCluster * C::kCluster));
    config.blockDim = dim3(C::kThreads);
    config.dynamicSmemBytes = sizeof(SharedStorage<C>);
    config.stream = stream;
    config.attrs = attributes.data();
    config.numAttrs = attributes.size();
  }
  Launch(const Launch&) = delete;

  static constexpr auto* kernel = &expert_gemm_fp8_kernel<kRole, Tuning>;
  std::array<cudaLaunchAttribute, 2> attributes{};
  cudaLaunchConfig_t config{};
};

void validate_run(const Problem& problem, Role role, const grouped::LaunchOptions& options) {
  grouped::validate(problem, role);
  TESSERA_CHECK(problem.operand_bytes == 1, problem.operand_bytes);
  const int32_t tile_rows = problem.tilings[grouped::gemm_idx(role)].tile_rows;
  TESSERA_CHECK(tile_rows == kTileRows, tile_rows, kTileRows);
  TESSERA_CHECK(options.num_ctas >= options.cluster_size, options.num_ctas, options.cluster_size);
}

}  // namespace

void launch(const Problem& problem, Role role, const grouped::LaunchOptions& options, cudaStream_t stream) {
  if (problem.max_rows == 0) return;
  validate_run(problem, role, options);
  with_instance(problem.dtype, role, options.cluster_size, options.marks != nullptr, [&](auto constant, auto tuning) {
    constexpr Role kRole = constant;
    using C = Config<kRole, decltype(tuning)>;
    const Launch<kRole, decltype(tuning)> launch(options.num_ctas, stream);
    const auto a_map = grouped::a_map(problem, kRole, static_cast<uint32_t>(C::kPolicy.tile_rows));
    TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&launch.config, launch.kernel,
                                          grouped::weight_map(problem, kRole, C::kBoxRows),
                                          grouped::shared_weight_map(problem, kRole, C::kBoxRows), a_map,
                                          grouped::out_map(problem, kRole, grouped::kStagingRows), problem, options));
  });
}

}  // namespace tessera::kernels::expert_gemm_fp8
