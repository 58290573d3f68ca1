// What a build without CUDA answers.
#include "tessera/classifier/cuda_classifier.h"
#include "tessera/core/error.h"

namespace tessera::classifier {

std::vector<std::unique_ptr<CudaClassifier>> make_cuda_classifiers(std::shared_ptr<const Model>, const CudaOptions&) {
  throw Error("device", "a build without CUDA", "one made where nvcc is installed");
}

}  // namespace tessera::classifier
