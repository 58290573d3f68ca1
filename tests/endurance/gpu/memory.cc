// Memory of the device that really runs out, in eight steps: what does not fit says so or comes down to a smaller
// micro-batch, with the same bits; what was taken is given back.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <new>

#include "cuda/core/memory.h"
#include "endurance/gpu/repeated_layer.h"
#include "endurance/gpu/rows.h"
#include "endurance/gpu/small_classifier.h"
#include "tessera/core/error.h"
#include "unit/classifier/random_model.h"

namespace tessera::testing {

namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
// What is left free for the classifier: nothing, too little for its weights, for one lane, for the micro-batch, enough.
constexpr int64_t kLeftFree[] = {0, 2 * kMiB, 6 * kMiB, 16 * kMiB, 40 * kMiB, 100 * kMiB, 250 * kMiB, 1200 * kMiB};

size_t free_now() {
  size_t free = 0, all = 0;
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  TESSERA_CUDA_CHECK(cudaMemGetInfo(&free, &all));
  return free;
}

/// Takes all memory but so much, in ever smaller pieces.
std::vector<cuda::DeviceBytes> take_all_but(int64_t left) {
  std::vector<cuda::DeviceBytes> taken;
  for (size_t piece = size_t{8} << 30; piece >= static_cast<size_t>(kMiB);) {
    if (static_cast<int64_t>(free_now()) - static_cast<int64_t>(piece) < left) {
      piece /= 2;
      continue;
    }
    try {
      taken.emplace_back(piece);
    } catch (const std::bad_alloc&) {
      piece /= 2;
    }
  }
  return taken;
}

}  // namespace

classifier::ClassifierConfig small_config() {
  classifier::ClassifierConfig config = classifier::testing::odd_config();
  config.vocab_size = 5000;
  config.embedding_size = 64;
  config.sequence_length = 32;
  config.filter_widths = {3, 4, 5};
  config.num_filters = 64;
  config.num_experts = 4;
  config.expert_size = 128;
  config.head_sizes = {64};
  return config;
}

std::shared_ptr<const classifier::Model> small_model() {
  static const auto model = [] {
    auto made = classifier::testing::random_model(small_config(), 5);
    made->vocabulary.clear();
    return std::shared_ptr<const classifier::Model>(made);
  }();
  return model;
}

std::vector<int32_t> small_sentences(int64_t num_sentences) {
  return classifier::testing::random_ids(small_config(), num_sentences, 9);
}

std::vector<std::unique_ptr<classifier::CudaClassifier>> small_lanes(int64_t micro_batch, int device) {
  classifier::CudaOptions options;
  options.device = device;
  options.num_lanes = 2;
  options.micro_batch = micro_batch;
  options.num_staging_threads = 2;
  return classifier::make_cuda_classifiers(small_model(), options);
}

std::vector<float> logits_of(classifier::Classifier& classifier, const std::vector<int32_t>& ids) {
  const classifier::ClassifierConfig config = small_config();
  const auto count = static_cast<int64_t>(ids.size()) / config.sequence_length;
  std::vector<float> logits(static_cast<size_t>(count * config.num_classes));
  classifier.run({.num_sentences = count, .ids = ids.data()}, {.logits = logits.data()});
  return logits;
}

Row out_of_memory(const GpuEndurance&) {
  constexpr int64_t kMicroBatch = 8192;
  Row problems = Row::array(), steps = Row::array();
  const std::vector<int32_t> ids = small_sentences(3000);
  std::vector<float> golden = logits_of(*small_lanes(kMicroBatch)[0], ids);
  golden = logits_of(*small_lanes(kMicroBatch)[0], ids);
  const size_t before = free_now();
  int num_refused = 0, num_smaller = 0, num_whole = 0;
  for (const int64_t left : kLeftFree) {
    std::string said;
    {
      const std::vector<cuda::DeviceBytes> taken = take_all_but(left);
      try {
        const auto lanes = small_lanes(kMicroBatch);
        said = lanes[0]->description();
        const bool is_whole = said.find("micro-batches of 8192") != std::string::npos;
        ++(is_whole ? num_whole : num_smaller);
        for (const auto& lane : lanes) {
          if (logits_of(*lane, ids) != golden) problems.push_back("other bits with little memory");
        }
      } catch (const Error& error) {
        ++num_refused;
        said = error.what();
        if (said.find("memory of cuda:0") == std::string::npos) problems.push_back(said);
      } catch (const std::exception& error) {
        problems.push_back(std::string("neither refused nor smaller: ") + error.what());
      }
    }
    steps.push_back({{"left_free_mib", left / kMiB}, {"said", said}});
    if (logits_of(*small_lanes(kMicroBatch)[1], ids) != golden) problems.push_back("other bits after memory came back");
  }
  const auto drift = static_cast<int64_t>(before) - static_cast<int64_t>(free_now());
  if (drift > 2 * kMiB) problems.push_back("memory was not given back");
  if (num_refused == 0 || num_whole == 0) problems.push_back("the steps do not span from too little to enough");
  return {
      {"ok", problems.empty()}, {"steps", std::size(kLeftFree)},    {"refused", num_refused}, {"smaller", num_smaller},
      {"whole", num_whole},     {"free_memory_drift_bytes", drift}, {"what_was_said", steps}, {"problems", problems}};
}

}  // namespace tessera::testing
