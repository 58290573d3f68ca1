#include "classifier/reference_classifier.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/reference.h"
#include "tessera/core/check.h"
#include "tessera/core/thread_pool.h"

namespace tessera::classifier {
namespace {

namespace reference = cpu::reference;

struct Result {
  std::vector<double> logits;
  std::vector<double> router_weights;
  std::vector<double> features;
};

class ReferenceClassifier final : public Classifier {
 public:
  ReferenceClassifier(std::shared_ptr<const Model> model, InputKind input, int num_threads)
      : model_(std::move(model)), config_(model_->config), input_(input), pool_(num_threads) {}

  void run(const Batch& batch, const Outputs& outputs) override {
    pool_.run(batch.num_sentences, [&](int64_t sentence, int) { run_sentence(batch, outputs, sentence); });
  }

  std::string description() const override {
    return str_cat("CPU, plain loops, fp64 (oracle), ", pool_.num_threads(), " threads; direct convolutions");
  }

  int64_t preferred_batch() const override {
    // About half a second at 0.5 GFLOP/s a thread, so that a run can be stopped.
    constexpr int64_t kFlops = 250'000'000;
    return pool_.num_threads() * std::clamp<int64_t>(kFlops / config_.flops_per_sentence(), 1, 64);
  }

 private:
  // [embedding_size, sequence_length] of the sentence; empty if an id is out of range.
  std::vector<double> input_of(const Batch& batch, int64_t sentence) const {
    const int64_t channels = config_.embedding_size;
    const int64_t positions = config_.sequence_length;
    std::vector<double> x(static_cast<size_t>(channels * positions));
    if (input_ == InputKind::embeddings) {
      std::copy_n(batch.embeddings + sentence * channels * positions, x.size(), x.begin());
      return x;
    }
    for (int64_t position = 0; position < positions; ++position) {
      const int32_t id = batch.ids[sentence * positions + position];
      if (id < 0 || id >= config_.vocab_size) return {};
      for (int64_t channel = 0; channel < channels; ++channel) {
        x[static_cast<size_t>(channel * positions + position)] =
            model_->weights.embedding[static_cast<size_t>(id * channels + channel)];
      }
    }
    return x;
  }

  Result classify(const std::vector<double>& x) const {
    const ModelWeights& weights = model_->weights;
    Result result;
    for (size_t i = 0; i < weights.conv.size(); ++i) {
      const std::vector<double> pooled =
          reference::conv_relu_max(x, config_.embedding_size, config_.sequence_length, weights.conv[i].weight.span(),
                                   weights.conv[i].bias.span(), config_.filter_widths[i]);
      result.features.insert(result.features.end(), pooled.begin(), pooled.end());
    }
    const auto apply = [](const LinearWeights& layer, const std::vector<double>& values) {
      return reference::linear(layer.weight.span(), layer.bias.span(), values);
    };
    result.router_weights = reference::softmax(apply(weights.router, result.features));
    std::vector<std::vector<double>> expert_outputs;
    for (const LinearWeights& expert : weights.experts) expert_outputs.push_back(apply(expert, result.features));
    std::vector<double> y = reference::mix(result.router_weights, expert_outputs);
    for (const LinearWeights& layer : weights.head) {
      y = apply(layer, y);
      reference::relu(y);
    }
    result.logits = apply(weights.output, y);
    return result;
  }

  void run_sentence(const Batch& batch, const Outputs& outputs, int64_t sentence) const {
    const std::vector<double> x = input_of(batch, sentence);
    const auto is_finite = [](double value) { return std::isfinite(value); };
    RecordStatus status = RecordStatus::ok;
    if (x.empty()) status = RecordStatus::id_out_of_range;
    if (!std::all_of(x.begin(), x.end(), is_finite)) status = RecordStatus::not_finite;
    Result result;
    if (status == RecordStatus::ok) result = classify(x);
    const auto write = [&](const std::vector<double>& values, float* out, int64_t size) {
      if (out == nullptr) return;
      float* row = out + sentence * size;
      std::fill_n(row, size, std::numeric_limits<float>::quiet_NaN());
      std::transform(values.begin(), values.end(), row, [](double value) { return static_cast<float>(value); });
    };
    write(result.logits, outputs.logits, config_.num_classes);
    write(result.router_weights, outputs.router_weights, config_.num_experts);
    write(result.features, outputs.features, config_.feature_size());
    if (outputs.status != nullptr) outputs.status[sentence] = status;
  }

  std::shared_ptr<const Model> model_;
  const ClassifierConfig& config_;
  InputKind input_;
  ThreadPool pool_;
};

}  // namespace

std::unique_ptr<Classifier> make_reference_classifier(std::shared_ptr<const Model> model, InputKind input,
                                                      int num_threads) {
  return std::make_unique<ReferenceClassifier>(std::move(model), input, num_threads);
}

}  // namespace tessera::classifier
