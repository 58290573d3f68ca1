// A run of a classifier whose outputs are poisoned before and looked at afterwards.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "tessera/classifier/classifier.h"
#include "unit/numeric_check.h"

namespace tessera::classifier::testing {

struct Result {
  std::vector<float> logits, router_weights, features;
  std::vector<RecordStatus> status;
};

/// Runs with poisoned and guarded outputs and checks that all of them, and nothing else, were written.
inline Result run(Classifier& classifier, const ClassifierConfig& config, const Batch& batch) {
  const auto n = static_cast<size_t>(batch.num_sentences);
  test::GuardedArray<float> logits(n * static_cast<size_t>(config.num_classes));
  test::GuardedArray<float> router_weights(n * static_cast<size_t>(config.num_experts));
  test::GuardedArray<float> features(n * static_cast<size_t>(config.feature_size()));
  test::GuardedArray<RecordStatus> status(n);
  classifier.run(batch, {logits.data(), router_weights.data(), features.data(), status.data()});
  EXPECT_TRUE(logits.intact());
  EXPECT_TRUE(router_weights.intact());
  EXPECT_TRUE(features.intact());
  EXPECT_TRUE(status.intact());
  const auto copy = [](const auto& array) { return std::vector(array.span().begin(), array.span().end()); };
  return {copy(logits), copy(router_weights), copy(features), copy(status)};
}

}  // namespace tessera::classifier::testing
