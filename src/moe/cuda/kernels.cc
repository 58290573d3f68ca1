#include "moe/cuda/kernels.h"

#include <cuda_runtime_api.h>

#include "cuda/core/cuda_check.h"
#include "cuda/kernels/expert_gemm/launch.h"
#include "cuda/kernels/expert_gemm_fp8/launch.h"
#include "cuda/kernels/expert_gemm_rows/launch.h"

namespace tessera::moe {

LaunchDevice current_launch_device(const LayerConfig& config) {
  LaunchDevice facts;
  int device = 0;
  TESSERA_CUDA_CHECK(cudaGetDevice(&device));
  TESSERA_CUDA_CHECK(cudaDeviceGetAttribute(&facts.num_multiprocessors, cudaDevAttrMultiProcessorCount, device));
  facts.runs_pairs = kernels::expert_gemm::clusters_fit(config.dtype, grouped::kMaxClusterSize);
  return facts;
}

void launch_gemm(const grouped::Problem& problem, grouped::Role role, const ResolvedLaunch& launch,
                 cuda::KernelMarks* marks, CUstream_st* stream) {
  switch (launch.kernel->id) {
    case KernelId::expert_gemm:
      return kernels::expert_gemm::launch(problem, role,
                                          {launch.num_ctas, launch.cluster_size, launch.back_every, marks}, stream);
    case KernelId::expert_gemm_fp8:
      return kernels::expert_gemm_fp8::launch(problem, role,
                                              {launch.num_ctas, launch.cluster_size, launch.back_every, marks}, stream);
    case KernelId::expert_gemm_rows:
      return kernels::expert_gemm_rows::launch(problem, role, {launch.num_ctas, marks}, stream);
  }
}

}  // namespace tessera::moe
