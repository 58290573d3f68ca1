// A classifier of some MiB on the GPU, its sentences, and what comes out of them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tessera/classifier/cuda_classifier.h"
#include "tessera/classifier/engine.h"

namespace tessera::testing {

classifier::ClassifierConfig small_config();
std::shared_ptr<const classifier::Model> small_model();
/// [num_sentences, sequence_length]
std::vector<int32_t> small_sentences(int64_t num_sentences);

/// Two lanes.
std::vector<std::unique_ptr<classifier::CudaClassifier>> small_lanes(int64_t micro_batch, int device = 0);

/// [num_sentences, num_classes]
std::vector<float> logits_of(classifier::Classifier& classifier, const std::vector<int32_t>& ids);

}  // namespace tessera::testing
