#include "tessera/classifier/cuda_classifier.h"

#include "tessera/core/error.h"

namespace tessera::classifier {

std::vector<std::unique_ptr<CudaClassifier>> make_cuda_classifiers(std::shared_ptr<const Model>, const CudaOptions&) {
  throw Error("device", "no CUDA back end yet");
}

std::vector<CudaDevice> cuda_devices(std::string& why_none) {
  why_none = "no CUDA back end yet";
  return {};
}

}  // namespace tessera::classifier
