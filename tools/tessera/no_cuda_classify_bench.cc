// The CUDA measurements of `tessera bench classify` in a build that has no CUDA kernels.
#include "classify_bench.h"
#include "tessera/core/error.h"

namespace tessera::cli {

std::unique_ptr<ClassifyBench> make_cuda_classify_bench(std::shared_ptr<ClassifyData>, const ClassifyBenchOptions&) {
  throw Error("--device cuda", "a build without CUDA kernels", "one made where nvcc is installed");
}

}  // namespace tessera::cli
