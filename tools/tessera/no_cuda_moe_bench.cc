// The CUDA measurements of `tessera bench moe` in a build that has no CUDA kernels.
#include "moe_bench.h"
#include "tessera/core/error.h"

namespace tessera::cli {

std::string cuda_moe_unavailable() { return "this build has no CUDA kernels"; }

std::unique_ptr<MoeBench> make_cuda_moe_bench(const moe::Preset&, const moe::LaunchPolicy&, const MoeBenchOptions&) {
  throw Error("--device cuda", cuda_moe_unavailable());
}

}  // namespace tessera::cli
