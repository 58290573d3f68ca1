// Compiled and, where there is a GPU, run with a small model.
#include <memory>
#include <string>
#include <vector>

#include "tessera/classifier/cuda_classifier.h"
#include "tessera/cuda/device.h"

using namespace tessera::classifier;

int main() {
  std::string why_none;
  if (tessera::cuda::devices(why_none).empty()) return 0;
  const auto model = std::make_shared<const Model>(load_model("models/movie-reviews"));
  const int64_t n = 3;
  const std::vector<float> values(
      static_cast<size_t>(n * model->config.embedding_size * model->config.sequence_length));
  std::vector<float> results(static_cast<size_t>(n * model->config.num_classes));
  const float* const pinned = values.data();
  float* const logits = results.data();
  // the block
}
