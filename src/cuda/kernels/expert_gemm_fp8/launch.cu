#include "cuda/kernels/expert_gemm_fp8/launch.h"

#include <array>
#include <cuda/std/type_traits>

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/grouped/tensor_maps.h"
#include "cuda/kernels/expert_gemm_fp8/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::expert_gemm_fp8 {
namespace {

// What a kernel is compiled for beside its role: carries the policy into the template.
template <class Element_, int32_t kClusterSize_, bool kMarked_>
struct Tuning {
  using Element = Element_;
  static constexpr int32_t kClusterSize = kClusterSize_;
  static constexpr bool kMarked = kMarked_;  // see cta/mark.cuh
};

template <auto kValue>
using Constant = ::cuda::std::integral_constant<decltype(kValue), kValue>;

// Calls function(role as a constant, Tuning) with the compiled instance for these; each of them is in this file.
template <class Function>
auto with_instance(DType dtype, Role role, int32_t cluster_size, bool marked, Function&& function) {
  const auto with_tuning = [&](auto tuning) {
    switch (role) {
      case Role::gate_up: return function(Constant<Role::gate_up>{}, tuning);
      case Role::up_only: return function(Constant<Role::up_only>{}, tuning);
      default: return function(Constant<Role::down>{}, tuning);
    }
  };
  const auto with_cluster = [&](auto element, auto cluster) {
    using Element = decltype(element);
    return marked ? with_tuning(Tuning<Element, cluster, true>{}) : with_tuning(Tuning<Element, cluster, false>{});
  };
  const auto with_element = [&](auto element) {
    return cluster_size == 2 ? with_cluster(element, Constant<2>{}) : with_cluster(element, Constant<1>{});
  };
  return dtype == DType::bf16 ? with_element(__nv_bfloat16{}) : with_element(__half{});
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

void validate(const Problem& problem, Role role, const grouped::LaunchOptions& options) {
  if (problem.dtype == DType::f32) throw Error("FP8 expert GEMM dtype", "f32", "bf16 or f16");
  TESSERA_CHECK(problem.operand_bytes == 1, problem.operand_bytes);
  const auto require_width = [](const char* name, int32_t value) {
    if (value <= 0 || value % 16 != 0) throw Error(name, str_cat(value), "a positive multiple of 16");
  };
  require_width("FP8 expert GEMM hidden_size", problem.hidden_size);
  require_width("FP8 expert GEMM intermediate_size", problem.intermediate_size);
  const void* const rows = role == Role::down ? problem.intermediate : problem.tokens;
  for (const void* pointer : {rows, problem.weight(role), problem.bias(role), problem.shared_weight(role),
                              static_cast<const void*>(problem.out(role))}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0)
      throw Error("FP8 expert GEMM argument", "a misaligned pointer", "16-byte alignment");
  }
  const int32_t tile_rows = problem.tilings[grouped::gemm_idx(role)].tile_rows;
  TESSERA_CHECK(tile_rows == kTileRows, tile_rows, kTileRows);
  TESSERA_CHECK(options.num_ctas >= options.cluster_size, options.num_ctas, options.cluster_size);
}

}  // namespace

void launch(const Problem& problem, Role role, const grouped::LaunchOptions& options, cudaStream_t stream) {
  if (problem.max_rows == 0) return;
  validate(problem, role, options);
  with_instance(problem.dtype, role, options.cluster_size, options.marks != nullptr, [&](auto constant, auto tuning) {
    constexpr Role kRole = constant;
    using C = Config<kRole, decltype(tuning)>;
    const Launch<kRole, decltype(tuning)> launch(options.num_ctas, stream);
    const auto a_map =
        C::kGathers ? CUtensorMap{} : grouped::intermediate_map(problem, static_cast<uint32_t>(C::kPolicy.tile_rows));
    TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&launch.config, launch.kernel,
                                          grouped::weight_map(problem, kRole, C::kBoxRows),
                                          grouped::shared_weight_map(problem, kRole, C::kBoxRows), a_map,
                                          grouped::out_map(problem, kRole, grouped::kStagingRows), problem, options));
  });
}

}  // namespace tessera::kernels::expert_gemm_fp8
